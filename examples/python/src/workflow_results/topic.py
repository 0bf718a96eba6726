"""What the waiting side asks about its topic: its ID, its partitions, and offsets."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec, TopicDescription  # type: ignore[attr-defined]

from workflow_results._process import keep_in_child
from workflow_results.connection import Connection, ErrorCallback
from workflow_results.result import ResultStreamError

Offsets = dict[int, int]  # by partition

_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class TopicAdmin:
    """Asks the brokers about one topic. Every method raises KafkaException if they do not answer in time."""

    def __init__(self, connection: Connection, topic: str, on_error: ErrorCallback | None = None) -> None:
        """Make the client; it connects by itself.

        Raises:
            ResultStreamError: no client can be made of this configuration.
        """
        self.last_error: KafkaError | None = None  # of the client as a whole: a broker that is away, a refused login
        keep_in_child(self)
        self._topic = topic
        self._on_error = on_error
        try:
            self._client = AdminClient(connection.admin(self._note))
        except KafkaException as e:
            raise ResultStreamError(topic, f"no client can be made of this configuration: {e.args[0]}") from e

    def poll(self) -> None:
        """Serve the client's callbacks: errors, logs, tokens."""
        self._client.poll(0)

    def _note(self, error: KafkaError) -> None:
        self.last_error = error
        if self._on_error is not None:
            self._on_error(error)

    def describe(self, timeout: float) -> Future[TopicDescription]:
        """Ask for the topic's ID and partitions; it is not made by asking."""
        collection = TopicCollection([self._topic])
        return self._client.describe_topics(collection, request_timeout=timeout)[self._topic]

    def high_watermarks(self, partitions: Iterable[int], timeout: float) -> Offsets:
        """Return the end of each partition, records of open transactions included."""
        return self._offsets(partitions, _LATEST, timeout, IsolationLevel.READ_UNCOMMITTED)

    def stable_ends(self, partitions: Iterable[int], timeout: float) -> Offsets:
        """Return the last stable offset of each partition: below it every transaction has ended."""
        return self._offsets(partitions, _LATEST, timeout, IsolationLevel.READ_COMMITTED)

    def since(self, partitions: Iterable[int], millis: int, timeout: float) -> Offsets:
        """Return the first offset of each partition that is not older; a partition without one is left out."""
        spec = OffsetSpec.for_timestamp(max(millis, 0))
        found = self._offsets(partitions, spec, timeout, IsolationLevel.READ_UNCOMMITTED)
        return {partition: offset for partition, offset in found.items() if offset >= 0}

    def _offsets(self, partitions: Iterable[int], spec: Any, timeout: float, isolation: IsolationLevel) -> Offsets:
        asked = {TopicPartition(self._topic, partition): spec for partition in partitions}
        if not asked:
            return {}
        answers = self._client.list_offsets(asked, isolation_level=isolation, request_timeout=timeout)
        return {where.partition: answer.result().offset for where, answer in answers.items()}
