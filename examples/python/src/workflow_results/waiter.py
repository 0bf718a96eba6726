"""One wait for one result."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime

from confluent_kafka import Message

from workflow_results.position import Position, offsets
from workflow_results.result import WorkflowResult
from workflow_results.topic import Offsets


class Waiter:
    """What is waited for, from where on, and what became of it.

    The hub's thread alone changes it. ``future`` is what the waiting side looks at.
    """

    __slots__ = (
        "future", "held", "key", "odd", "position", "records", "settled", "since", "topic", "topic_id",
        "until", "workflow_id",
    )  # fmt: skip

    def __init__(self, key: str, topic: str, workflow_id: str | None, begin: Position | datetime) -> None:
        """Begin at a position, or at a time.

        Raises:
            ValueError: the position is none in this topic.
        """
        self.key = key.encode()
        self.topic = topic
        self.workflow_id = workflow_id
        self.since: int | None = None  # milliseconds since 1970
        self.position: Offsets = {}
        self.topic_id: str | None = None
        if isinstance(begin, datetime):
            self.since = int(begin.timestamp() * 1000)
        else:
            self.position, self.topic_id = offsets(begin, topic), begin.get("topic_id")
        self.future: Future[WorkflowResult] = Future()
        self.until: Mapping[int, int] = {}  # from here on the hub reads live for us
        self.settled = False  # what lies before `until` has been read
        self.held: WorkflowResult | None = None  # found live, before it was settled that there is none before it
        self.odd: str | None = None  # a record with our key that is not our result
        self.records: int | None = None  # that the hub had read when we joined

    def join(self, topic_id: str, until: Mapping[int, int], records: int) -> None:
        """Note where the hub is as we join; a position in a topic that was made anew since means its start."""
        self.until = until
        self.records = records
        if self.since is None and self.topic_id != topic_id:
            self.position = {}

    def restart(self) -> None:
        """Follow a topic that was made anew: the hub reads all of it live."""
        self.until, self.position, self.settled = {}, {}, True

    def accepts(self, message: Message) -> bool:
        """Say whether the record lies behind our beginning; the hub may read earlier ones for others."""
        partition, offset = place(message)
        if offset >= self.until.get(partition, 0):
            return True
        if self.since is not None:
            return message.timestamp()[1] >= self.since
        return offset >= self.position.get(partition, 0)

    def read(self, message: Message) -> WorkflowResult | None:
        """Turn the record into our result; None if it is not ours, which is told, and does not end the wait."""
        partition, offset = place(message)
        try:
            found = WorkflowResult.from_record(message.value() or b"", self.topic, partition, offset)
            if found.correlation_id.encode() != self.key:
                raise ValueError(f"its correlation_id is {found.correlation_id}")
            if self.workflow_id not in (None, found.workflow_id):
                raise ValueError(f"its workflow_id is {found.workflow_id}, not {self.workflow_id}")
        except ValueError as e:
            self.odd = f"the record of this key at partition {partition}, offset {offset} is not the result: {e}"
            return None
        return found

    def begin(self) -> str:
        """Tell where we began, for people."""
        if self.since is not None:
            return f"since {datetime.fromtimestamp(self.since / 1000, UTC).isoformat(timespec='seconds')}"
        if not self.position:
            return "from its start"
        return "from offsets " + ", ".join(f"{offset} of partition {p}" for p, offset in sorted(self.position.items()))


def place(message: Message) -> tuple[int, int]:
    """Return partition and offset of a record that was read."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None, "a record that was read has a place"  # noqa: PT018
    return partition, offset
