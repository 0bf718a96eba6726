"""A workflow's result as its waiter gets it, and what can go wrong on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

from workflow_results.events import WorkflowResultEvent, write_time

_FIELDS = (
    "event_type", "event_id", "correlation_id", "workflow_id", "workflow_run_id",
    "result", "status", "timestamp", "error",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class WorkflowResult(Mapping[str, Any]):
    """The result of a workflow, and where in Kafka it stands.

    It is also a mapping of the event's nine fields as JSON has them (the
    timestamp is a string there), so ``dict(result)`` can be written as JSON.
    """

    event_type: str
    event_id: str
    correlation_id: str
    workflow_id: str
    workflow_run_id: str
    result: dict[str, Any]
    status: str
    timestamp: datetime
    error: str | None
    topic: str
    partition: int
    offset: int

    @classmethod
    def from_record(cls, value: bytes, topic: str, partition: int, offset: int) -> Self:
        """Read a record's value.

        Raises:
            ValueError: it is no valid result event.
        """
        event = WorkflowResultEvent.from_json(value)
        return cls(
            event_type=event.event_type.value,
            event_id=str(event.event_id),
            correlation_id=str(event.correlation_id),
            workflow_id=event.workflow_id,
            workflow_run_id=event.workflow_run_id,
            result=event.result,
            status=event.status,
            timestamp=event.timestamp,
            error=event.error,
            topic=topic,
            partition=partition,
            offset=offset,
        )

    def raise_for_status(self) -> Self:
        """Return the result itself if the workflow succeeded.

        Raises:
            WorkflowFailed: the workflow itself decided so (status failure).
            WorkflowErrored: the workflow broke (status error).
        """
        if self.status == "failure":
            raise WorkflowFailed(self)
        if self.status == "error":
            raise WorkflowErrored(self)
        return self

    def __getitem__(self, name: str) -> Any:
        """Return a field of the event."""
        if name not in _FIELDS:
            raise KeyError(name)
        return write_time(self.timestamp) if name == "timestamp" else getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        """Name the event's fields, in their order."""
        return iter(_FIELDS)

    def __len__(self) -> int:
        """Count the event's fields."""
        return len(_FIELDS)

    def __repr__(self) -> str:
        """Show every attribute; Mapping has no repr of its own."""
        return f"WorkflowResult({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields(self))})"


class ResultWaitError(Exception):
    """Base of all errors of triggering a workflow and waiting for its result.

    They survive pickling: each keeps the arguments of its constructor in ``args``.
    """


class WorkflowFailed(ResultWaitError):
    """The workflow decided that it failed; ``result`` is what it said."""

    def __init__(self, result: WorkflowResult) -> None:
        """Keep the result."""
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        """Tell which workflow, and its error text."""
        it = self.result
        said = it.error or "it gave no error text"
        return f"workflow {it.workflow_id}, run {it.workflow_run_id}, ended with status {it.status}: {said}"


class WorkflowErrored(WorkflowFailed):
    """The workflow broke; ``result.error`` says on what."""


class ResultTimeout(ResultWaitError, TimeoutError):
    """No result came in time.

    It may still come: wait again with the same correlation ID and position.

    Attributes:
        correlation_id, topic: what was waited for, and where.
        waited: seconds.
        begin: from which position the topic was read.
        records: how many records were read during the wait, for all waiters of this process.
        trouble: what was last wrong, None if nothing.
    """

    def __init__(
        self, correlation_id: str, topic: str, waited: float, begin: str, records: int, trouble: str | None
    ) -> None:
        """Keep what an operator needs."""
        # TimeoutError is an OSError, which would take two to five arguments for an errno and its text; these are six.
        super().__init__(correlation_id, topic, waited, begin, records, trouble)
        self.correlation_id = correlation_id
        self.topic = topic
        self.waited = waited
        self.begin = begin
        self.records = records
        self.trouble = trouble

    def __str__(self) -> str:
        """Tell all of it."""
        text = (
            f"no result for correlation ID {self.correlation_id} in topic {self.topic} after {self.waited:.1f} s, "
            f"read {self.begin}; {self.records} records were read meanwhile"
        )
        return f"{text}; last trouble: {self.trouble}" if self.trouble else f"{text}, without any trouble"


class ResultStreamError(ResultWaitError):
    """The topic cannot be read, and waiting on would not help: ``cause`` says why."""

    def __init__(self, topic: str, cause: str) -> None:
        """Keep the topic and the cause."""
        super().__init__(topic, cause)
        self.topic = topic
        self.cause = cause

    def __str__(self) -> str:
        """Tell both."""
        return f"topic {self.topic} cannot be read: {self.cause}"


class TriggerNotDelivered(ResultWaitError):
    """Kafka did not confirm a trigger. It will not be sent later by itself.

    ``sent`` is False if it never left this process. If True, its answer was
    lost: the workflow may have started. Publishing it again with the same
    ``event_id`` lets the workflow's side recognise it.
    """

    def __init__(self, event_id: str, topic: str, cause: str, sent: bool) -> None:
        """Keep which trigger, for which topic, and why."""
        super().__init__(event_id, topic, cause, sent)
        self.event_id = event_id
        self.topic = topic
        self.cause = cause
        self.sent = sent

    def __str__(self) -> str:
        """Tell all of it, and what to do."""
        state = "it may have arrived all the same" if self.sent else "it was not sent"
        return (
            f"trigger {self.event_id} was not delivered to topic {self.topic} ({state}): {self.cause}. "
            f"Publish again with event_id={self.event_id!r}."
        )
