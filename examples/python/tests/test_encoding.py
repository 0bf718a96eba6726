from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel

from workflow_results.encoding import dumps, to_jsonable


class Colour(Enum):
    RED = "red"


class OldText(str, Enum):  # noqa: UP042  # a form that is still about
    A = "a"


class Text(StrEnum):
    B = "b"


class Number(IntEnum):
    ONE = 1


class Nested(Enum):
    POINT = Decimal("0.5")


@dataclass
class Point:
    x: Any


class Pair(NamedTuple):
    a: int
    b: int


class Order(BaseModel):
    id: UUID
    at: datetime
    by: dict[UUID, int] = {}


SOME = uuid4()
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (SOME, str(SOME)),
        (WHEN, "2026-01-02T00:00:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        (Decimal("0.10"), "0.10"),
        (Colour.RED, "red"),
        (OldText.A, "a"),
        (Text.B, "b"),
        (Number.ONE, 1),
        (Nested.POINT, "0.5"),
        ({1}, [1]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (b"\x00", "AA=="),
        (bytearray(b"\x00"), "AA=="),
        (Pair(1, 2), [1, 2]),
        (MappingProxyType({"a": SOME}), {"a": str(SOME)}),
        (Point(Point(SOME)), {"x": {"x": str(SOME)}}),
        (Order(id=SOME, at=WHEN, by={SOME: 1}), {"id": str(SOME), "at": "2026-01-02T00:00:00Z", "by": {str(SOME): 1}}),
        (2**70, 2**70),
        ("ü\u2028\n", "ü\u2028\n"),
    ],
)
def test_values(value: Any, written: Any) -> None:
    assert json.loads(dumps({"a": [value]})) == {"a": [written]}


def test_messages() -> None:
    call = {"name": "look_up", "args": {"id": 1}, "id": "c1"}
    human, ai = json.loads(dumps([HumanMessage("hello"), AIMessage("", tool_calls=[call])]))
    assert (human["type"], human["content"]) == ("human", "hello")
    assert ai["tool_calls"][0]["args"] == {"id": 1}


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("a", "a"),
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        (SOME, str(SOME)),
        (Decimal("0.10"), "0.10"),
        (WHEN, "2026-01-02T00:00:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (Colour.RED, "red"),
        (OldText.A, "a"),
        (Text.B, "b"),
        (Number.ONE, "1"),
        (Nested.POINT, "0.5"),
    ],
)
def test_keys(key: Any, written: str) -> None:
    assert dumps({"x": Point({key: 0})}) == json.dumps({"x": {"x": {written: 0}}}, separators=(",", ":"))


@pytest.mark.parametrize("key", [(1, 2), b"a", frozenset()])
def test_keys_that_have_no_text(key: Any) -> None:
    with pytest.raises(TypeError, match=rf"a {type(key).__name__} cannot be a key in JSON \(at \.a\[1\]\)"):
        dumps({"a": [0, {key: 1}]})


def test_keys_that_are_written_alike() -> None:
    with pytest.raises(ValueError, match=r"two keys are written as '1' \(at \.a\)"):
        dumps({"a": {1: "one", "1": "another"}})


def test_what_cannot_be_written_is_named_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"cannot write a object as JSON.*\(at \.a\[1\]\.x\)"):
        dumps({"a": [0, Point(object())]})
    with pytest.raises(TypeError, match="cannot write a ModelMetaclass"):
        dumps({"a": Order})


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def model_dump(self, mode: str) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("boom"), ValueError("boom")])
def test_what_raises_while_it_is_written_is_an_error_of_the_value(error: Exception) -> None:
    with pytest.raises(ValueError, match=rf"cannot write a Broken as JSON: {type(error).__name__}: .*boom.* \(at \.a"):
        dumps({"a": [Broken(error)]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {float("nan"): 1}])
def test_no_nan(value: Any) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        dumps({"x": value})


def test_a_circle_and_a_depth_are_errors_of_the_value() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    with pytest.raises(ValueError, match="contains itself"):
        dumps(circle)


SETS = """
from dataclasses import dataclass, field
from workflow_results.encoding import dumps

@dataclass(frozen=True)
class Item:
    tags: frozenset[str]
    name: str = field(repr=False)

names = {str(i) for i in range(50)}
within = {frozenset({name, name + "b", name + "c"}) for name in names}
print(dumps([names, within, {Item(frozenset(), name) for name in names}, {Item(tags, "n") for tags in within}]))
"""


def test_sets_are_written_alike_by_every_process() -> None:
    """A repeated run must not differ from the first by the order of a set."""
    runs = {subprocess.run([sys.executable, "-c", SETS], check=True, capture_output=True).stdout for _ in range(3)}
    assert len(runs) == 1


def test_as_default_of_another_encoder() -> None:
    assert json.dumps({"a": SOME, "b": {Text.B}}, default=to_jsonable) == f'{{"a": "{SOME}", "b": ["b"]}}'
