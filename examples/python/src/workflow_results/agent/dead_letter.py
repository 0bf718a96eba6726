"""Putting aside what can never be run, with the reason, in a topic of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message, Producer

from workflow_results.agent.logs import say
from workflow_results.connection import Connection

PREFIX = "dead-letter-"
RETRY = 2.0  # seconds
MAX_BYTES = 1_000_000_000  # of librdkafka: what is too large is for the topic to say

Headers = list[tuple[str, str | bytes | None]]


@dataclass
class _Letter:
    """A record on its way."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    of: dict[str, object]  # topic, partition, offset: for the log
    delivered: Callable[[], None]
    retry_at: float = 0.0
    failed: bool = False


class DeadLetters:
    """Sends records to the dead-letter topic until each is confirmed. For one thread; callbacks come from `poll`."""

    def __init__(self, connection: Connection, topic: str, group: str, on_error: Callable[[KafkaError], None]) -> None:
        """Make the producer; nothing is sent yet. Each letter names the group: each puts aside its own copy."""
        settings = {
            "message.timeout.ms": 0,  # try for ever: an offset is not committed before its letter is confirmed
            "message.max.bytes": MAX_BYTES,
            "topic.metadata.propagation.max.ms": 5000,  # a topic that is missing is told soon
        }
        self._producer = Producer(connection.producer(on_error, **settings))
        self._topic = topic
        self._group = group
        self._again: list[_Letter] = []
        self.pending = 0

    def send(self, record: Message, reason: str, delivered: Callable[[], None]) -> None:
        """Send a record as it came, with headers of ours behind its own; ``delivered`` is called once it is there."""
        place: dict[str, object] = {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
        added = {"reason": reason, "group": self._group, **place, "timestamp": record.timestamp()[1]}
        headers: Headers = list(_headers(record))
        headers += [(PREFIX + name, str(value).encode("utf-8", "backslashreplace")) for name, value in added.items()]
        say(logging.WARNING, "a trigger goes to the dead letters", **place, reason=reason)
        self.pending += 1
        self._produce(_Letter(_bytes(record.key()), _bytes(record.value()), headers, place, delivered))

    def poll(self) -> None:
        """Hear of what was delivered, and send again what was not."""
        self._producer.poll(0)
        now = time.monotonic()
        due = [letter for letter in self._again if letter.retry_at <= now]
        self._again = [letter for letter in self._again if letter.retry_at > now]
        for letter in due:
            self._produce(letter)

    def _produce(self, letter: _Letter) -> None:
        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._failed(letter, error)
                return
            if letter.failed:
                say(logging.INFO, "the dead letter is delivered now", to=self._topic, **letter.of)
            self.pending -= 1
            letter.delivered()

        try:
            self._producer.produce(
                self._topic, letter.value, letter.key, headers=letter.headers, on_delivery=report
            )  # fmt: skip
        except BufferError:  # librdkafka's queue is full
            self._retry(letter, "the producer's queue is full")

    def _failed(self, letter: _Letter, error: KafkaError) -> None:
        """Send it again later, for ever: without the value, where the topic does not take that much."""
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and letter.value is not None:
            letter.headers.append((PREFIX + "value-left-out", str(len(letter.value)).encode()))
            letter.value = None
            self._produce(letter)
        else:
            self._retry(letter, str(error))

    def _retry(self, letter: _Letter, cause: str) -> None:
        say(logging.ERROR, "a dead letter could not be delivered; it is sent again", to=self._topic, **letter.of,
            cause=cause)  # fmt: skip
        letter.failed = True
        letter.retry_at = time.monotonic() + RETRY
        self._again.append(letter)


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _headers(record: Message) -> Iterator[tuple[str, str | bytes | None]]:
    """Yield a record's own headers; the library's types would have them in a dict, which they never are."""
    for header in record.headers() or []:
        assert isinstance(header, tuple)
        yield header
