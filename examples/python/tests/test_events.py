from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from workflow_results.events import EventType, WorkflowEvent, WorkflowResultEvent

API = Path(__file__).parents[3] / "api"


def vectors(kind: str) -> list[Any]:
    found = json.loads((API / "vectors" / f"{kind}.json").read_text())
    assert len(found) >= 40
    return [pytest.param(each, id=each["name"]) for each in found]


def data(vector: dict[str, Any]) -> bytes:
    return base64.b64decode(vector["input_base64"]) if "input_base64" in vector else vector["input"].encode()


def schema(name: str) -> Draft202012Validator:
    document = json.loads((API / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


@pytest.mark.parametrize("vector", vectors("valid"))
def test_valid_vectors_are_taken_and_written_again(vector: dict[str, Any]) -> None:
    event = WorkflowResultEvent.from_json(data(vector))
    if vector["name"] == "numbers no double can hold":
        assert math.inf in event.result.values()  # a float holds no more; JSON has no word for it
        return
    written = json.loads(event.to_json())
    want = json.loads(vector["value"])
    assert list(written) == list(want)
    given = json.loads(vector["input"])
    for made_here in ("event_id", "timestamp"):
        if given.get(made_here) is None:
            assert written[made_here] != want[made_here]
            want[made_here] = written[made_here]
    if len(want["timestamp"]) > len("2026-01-02T03:04:05.123456Z"):
        want["timestamp"] = want["timestamp"][:26] + "Z"  # a datetime has microseconds
    assert written == want
    assert not list(schema("result").iter_errors(written))


@pytest.mark.parametrize("vector", vectors("invalid"))
def test_invalid_vectors_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        WorkflowResultEvent.from_json(data(vector))


def test_refusals_tell_fields_and_no_values() -> None:
    value = {"correlation_id": "secret", "workflow_id": "secret" * 100, "status": "secret", "workflow_run_id": "r"}
    with pytest.raises(ValueError, match=r"correlation_id: .*workflow_id: .*status: ") as caught:
        WorkflowResultEvent.from_json(json.dumps(value).encode())
    assert "secret" not in str(caught.value)


TRIGGER = {
    "event_id": "0192f0c1-7b1e-7cc3-9d2a-0123456789ab", "event_type": "workflow.triggered", "workflow_id": "w",
    "workflow_run_id": "r", "timestamp": "2026-01-02T03:04:05.678Z", "payload": {"a": [1, None]},
}  # fmt: skip


def test_trigger_is_written_and_read_again() -> None:
    event = WorkflowEvent.from_json(json.dumps(TRIGGER).encode())
    assert event.event_id == UUID(TRIGGER["event_id"])
    assert event.event_type is EventType.WORKFLOW_TRIGGERED
    assert json.loads(event.to_json()) == TRIGGER
    assert list(json.loads(event.to_json())) == list(schema("trigger").schema["required"])


def test_trigger_defaults() -> None:
    before = datetime.now(UTC)
    first, second = (
        WorkflowEvent(event_type="workflow.triggered", workflow_id="w", workflow_run_id="r", payload={}) for _ in "12"
    )
    assert first.event_id != second.event_id
    assert before <= first.timestamp <= datetime.now(UTC)
    assert not list(schema("trigger").iter_errors(json.loads(first.to_json())))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, None) for name in TRIGGER],
        *[(name, ...) for name in TRIGGER],
        *[(name, 7) for name in TRIGGER],
        ("event_id", "00000000-0000-0000-0000-000000000000"),
        ("event_id", TRIGGER["event_id"].replace("-", "")),
        ("event_id", "{" + TRIGGER["event_id"] + "}"),
        ("event_type", "workflow.other"),
        ("workflow_id", ""),
        ("workflow_run_id", "w" * 257),
        ("timestamp", "2026-01-02"),
        ("timestamp", "2026-01-02T03:04:05"),
        ("timestamp", "2026-13-02T03:04:05Z"),
        ("payload", []),
        ("payload", "x"),
        ("extra", 1),
    ],
)
def test_trigger_model_and_schema_refuse_the_same(field: str, value: object) -> None:
    fields = {**TRIGGER, field: value}
    if value is ...:
        del fields[field]
    assert list(schema("trigger").iter_errors(fields))
    with pytest.raises(ValueError, match=field):
        WorkflowEvent.from_json(json.dumps(fields).encode())


def test_models_are_frozen_and_count_bytes() -> None:
    event = WorkflowEvent(**TRIGGER | {"workflow_id": "é" * 128})
    with pytest.raises(ValidationError, match="frozen"):
        event.workflow_id = "other"
    with pytest.raises(ValidationError, match="has 258"):
        WorkflowEvent(**TRIGGER | {"workflow_id": "é" * 129})


def test_times_are_aware_and_become_utc() -> None:
    event = WorkflowEvent(**TRIGGER | {"timestamp": datetime(2026, 1, 2, 5, tzinfo=timezone(timedelta(hours=2)))})
    assert event.timestamp.isoformat() == "2026-01-02T03:00:00+00:00"
    with pytest.raises(ValidationError, match="aware"):
        WorkflowEvent(**TRIGGER | {"timestamp": datetime(2026, 1, 2)})


def test_payload_takes_what_workflows_hold() -> None:
    some_id = uuid4()
    event = WorkflowEvent(**TRIGGER | {"payload": {"id": some_id, "text": "\ud800"}})
    assert json.loads(event.to_json())["payload"] == {"id": str(some_id), "text": "\ud800"}
