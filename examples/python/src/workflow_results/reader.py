"""A consumer of given partitions that knows, for each, up to where it has read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from workflow_results._process import keep_in_child
from workflow_results.connection import Connection, ErrorCallback
from workflow_results.topic import Offsets

BATCH = 2000  # records taken at once
METADATA_TIMEOUT = 3.0  # seconds


class Reader:
    """Reads committed records only; belongs to one thread.

    ``next`` is the offset behind the last record that `read` returned, or behind
    the end of what is committed if that lies further: markers of transactions
    and aborted records are never returned, so an offset cannot be waited for.
    """

    def __init__(
        self,
        connection: Connection,
        topic: str,
        on_error: ErrorCallback,
        on_read: Callable[[str | None], None],
        fetch_wait: float = 0.5,
    ) -> None:
        """Make the consumer.

        Args:
            on_error: is told of errors of the client as a whole.
            on_read: is told what was wrong with reading a partition, or None: it goes well.
            fetch_wait: seconds that a broker with nothing to send holds a request. Other partitions are
                asked for only when it has been answered.
        """
        keep_in_child(self)
        self.next: Offsets = {}
        self._topic = topic
        self._on_read = on_read
        self._consumer = Consumer(connection.consumer(on_error, **{"fetch.wait.max.ms": int(fetch_wait * 1000)}))

    def assign(self, starts: Mapping[int, int]) -> None:
        """Read these partitions from these offsets, and no others.

        Raises:
            KafkaException: the brokers did not say who leads them.
        """
        if starts:  # else the consumer finds its leaders a second later
            self._consumer.list_topics(self._topic, timeout=METADATA_TIMEOUT)
        if starts or self.next:
            self._consumer.assign(self._partitions(starts))
        self.next = dict(starts)

    def add(self, starts: Mapping[int, int]) -> None:
        """Read these partitions as well.

        Raises:
            KafkaException: the brokers did not say who leads them.
        """
        self._consumer.list_topics(self._topic, timeout=METADATA_TIMEOUT)
        self._consumer.incremental_assign(self._partitions(starts))
        self.next.update(starts)

    def read(self, wait: float) -> list[Message]:
        """Return what has arrived, or what arrives first within ``wait`` seconds.

        Raises:
            KafkaException: the client is broken for good.
        """
        first = self._consumer.poll(wait)  # not consume(n, wait): that holds back the first until there are n
        if first is None:
            return []
        records = []
        for message in [first, *self._consumer.consume(BATCH, 0)]:
            if message.error() is None:
                records.append(message)
                self.next[message.partition()] = message.offset() + 1  # type: ignore[index,operator]
            else:
                self._note(message)
        if records:
            self._on_read(None)
        return records

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _note(self, message: Message) -> None:
        error, partition, offset = message.error(), message.partition(), message.offset()
        assert error is not None
        if error.fatal():
            raise KafkaException(error)
        if error.code() != KafkaError._PARTITION_EOF:
            self._on_read(f"partition {partition}: {error}")
        elif partition in self.next and offset is not None:
            self.next[partition] = max(self.next[partition], offset)
            self._on_read(None)

    def _partitions(self, starts: Mapping[int, int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition, offset) for partition, offset in starts.items()]
