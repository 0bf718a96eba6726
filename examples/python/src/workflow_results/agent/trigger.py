"""Reading a trigger out of a record."""

from __future__ import annotations

from workflow_results.events import EventType, WorkflowEvent


class InvalidTrigger(ValueError):
    """The record is no trigger, and never will be; the text says why, without any of its values."""


def read_trigger(value: bytes | None, max_bytes: int) -> WorkflowEvent:
    """Read the value of a record.

    Raises:
        InvalidTrigger: it has more than ``max_bytes``, does not fit the schema, or is another event.
    """
    if value is None:
        raise InvalidTrigger("the record has no value")
    if len(value) > max_bytes:
        raise InvalidTrigger(f"the value has {len(value)} bytes, more than {max_bytes}")
    try:
        event = WorkflowEvent.from_json(value)
    except ValueError as e:
        raise InvalidTrigger(str(e)) from e
    if event.event_type is not EventType.WORKFLOW_TRIGGERED:
        raise InvalidTrigger(f'event_type is "{event.event_type}", not "{EventType.WORKFLOW_TRIGGERED}"')
    return event
