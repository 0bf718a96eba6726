"""The events as pydantic models: the trigger, and the result that answers it.

Both are as strict as their schemas (api/trigger.schema.json, api/result.schema.json),
and beyond them where a schema cannot tell: no field twice, lengths in bytes.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeVar
from uuid import UUID, uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictStr,
    ValidationError,
    model_validator,
)

from workflow_results.encoding import dumps

MAX_ID_BYTES = 256
MAX_DEPTH = 128  # levels of nesting; the event is level 1

_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


class EventType(StrEnum):
    """What an event says."""

    WORKFLOW_TRIGGERED = "workflow.triggered"
    WORKFLOW_COMPLETED = "workflow.completed"
    WORKFLOW_FAILED = "workflow.failed"
    WORKFLOW_RESULT = "workflow.result"


def _uuid(value: Any) -> UUID:
    """Take the one text form of RFC 9562; the nil UUID is a default that somebody forgot to fill."""
    if isinstance(value, str) and _UUID.fullmatch(value):
        value = UUID(value)
    if not isinstance(value, UUID):
        raise ValueError("must be a UUID of 36 characters, such as 0192f0c1-7b1e-7cc3-9d2a-0123456789ab")
    if value.int == 0:
        raise ValueError("must not be the nil UUID")
    return value


def _timestamp(value: Any) -> datetime:
    """Take RFC 3339, or an aware datetime. Beyond microseconds, decimals are cut off: datetime holds no more."""
    if isinstance(value, str) and _TIME.fullmatch(value):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("must be an RFC 3339 time such as 2026-01-02T03:04:05.678Z, or an aware datetime")
    try:
        return value.astimezone(UTC)
    except OverflowError as e:
        raise ValueError("must be in the years 0001 to 9999 in UTC") from e


def write_time(value: datetime) -> str:
    """Write RFC 3339 in UTC, without trailing zeros, as the sidecar does."""
    text = value.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "Z"


def _text(value: str) -> str:
    """Refuse what UTF-8 cannot carry."""
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise ValueError("has an unpaired surrogate") from e
    return value


def _id(value: str) -> str:
    size = len(_text(value).encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise ValueError(f"must have 1 to {MAX_ID_BYTES} bytes of UTF-8, has {size}")
    return value


Uuid = Annotated[UUID, BeforeValidator(_uuid)]
Timestamp = Annotated[datetime, BeforeValidator(_timestamp), PlainSerializer(write_time, when_used="json")]
Id = Annotated[StrictStr, AfterValidator(_id)]
Text = Annotated[StrictStr, AfterValidator(_text)]


def _now() -> datetime:
    return datetime.now(UTC)


class _Event(BaseModel):
    """What both events share: they are frozen, refuse unknown fields, and tell no values in their errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def to_json(self) -> bytes:
        """Write the record's value; an unpaired surrogate becomes its escape."""
        fields = self.model_dump() | self.model_dump(mode="json", include={"timestamp"})
        return dumps(fields).encode("utf-8", "backslashreplace")


E = TypeVar("E", bound=_Event)


class WorkflowEvent(_Event):
    """An event of a workflow: the trigger that starts it, above all.

    The ``event_id`` of a trigger is the correlation ID of its result.
    """

    event_id: Uuid = Field(default_factory=uuid4)
    event_type: EventType
    workflow_id: Id
    workflow_run_id: Id
    timestamp: Timestamp = Field(default_factory=_now)
    payload: dict[str, Any]

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a record's value; it has all six fields, so nothing is made up for one that is missing.

        Raises:
            ValueError: what is wrong with it, field by field.
        """
        fields = read_object(data)
        if missing := [name for name in cls.model_fields if name not in fields]:
            raise ValueError(f"no {', '.join(missing)}")
        return _validated(cls, fields)


class WorkflowResultEvent(_Event):
    """The result of a workflow, as api/result.schema.json has it."""

    event_type: EventType = EventType.WORKFLOW_RESULT
    event_id: Uuid = Field(default_factory=uuid4)
    correlation_id: Uuid
    workflow_id: Id
    workflow_run_id: Id
    result: dict[str, Any] = Field(default_factory=dict)
    status: Literal["success", "failure", "error"]
    timestamp: Timestamp = Field(default_factory=_now)
    error: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _nulls(cls, fields: Any) -> Any:
        """Treat null as left out where the schema does: everywhere but in the result of a success."""
        if not isinstance(fields, dict):
            return fields
        optional = {"event_id", "timestamp", "error"} | (set() if fields.get("status") == "success" else {"result"})
        return {name: value for name, value in fields.items() if value is not None or name not in optional}

    @model_validator(mode="after")
    def _fits_status(self) -> Self:
        if self.event_type is not EventType.WORKFLOW_RESULT:
            raise ValueError('event_type: must be "workflow.result"')
        if self.status == "success" and "result" not in self.model_fields_set:
            raise ValueError("result: is required for status success")
        if self.status == "success" and self.error is not None:
            raise ValueError("error: must be null for status success")
        if self.status == "error" and not self.error:
            raise ValueError("error: is required for status error: what broke")
        return self

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a record's value.

        Raises:
            ValueError: what is wrong with it, field by field.
        """
        return _validated(cls, read_object(data))


def _validated(kind: type[E], fields: dict[str, Any]) -> E:
    try:
        return kind.model_validate(fields)
    except ValidationError as e:
        wrong = [(".".join(str(part) for part in each["loc"]), each["msg"]) for each in e.errors(include_input=False)]
        raise ValueError("; ".join(f"{where}: {what}" if where else what for where, what in wrong)) from e


def read_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object by RFC 8259: UTF-8, no NaN, no field twice, at most 128 levels.

    Raises:
        ValueError: why it is none.
    """
    repeated = False

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated  # the outermost object is the last to end, so its answer is what stays
        fields = dict(pairs)
        repeated = len(fields) < len(pairs)
        return fields

    try:
        value = json.loads(data.decode(), object_pairs_hook=members, parse_constant=_refuse)
    except RecursionError as e:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from e
    if not isinstance(value, dict):
        raise ValueError("must be one JSON object")
    if repeated:
        raise ValueError("a field is given more than once")
    _check_depth(value)
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
