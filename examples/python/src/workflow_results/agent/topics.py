"""Making the topics of the triggers, so that the first trigger of a new installation finds one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from workflow_results.agent.logs import say
from workflow_results.connection import Connection

REQUEST_TIMEOUT = 10.0  # seconds
RETRY = 2.0  # seconds

# The topic is not made, and asking again would not change that.
_FINAL = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.TOPIC_EXCEPTION,
}


class TopicMaker:
    """Makes topics that are missing, beside the agent's loop: brokers may be away. For one thread, which calls `poll`.

    A topic that exists is left as it is.
    """

    def __init__(
        self,
        connection: Connection,
        topics: list[str],
        partitions: int,
        replication_factor: int,
        on_error: Callable[[KafkaError], None],
    ) -> None:
        """Make the client; ``replication_factor`` -1 is the brokers' default."""
        self._client = AdminClient(connection.admin(on_error))
        self._missing = {name: NewTopic(name, partitions, replication_factor) for name in topics}
        self._asked: dict[str, Future[Any]] = {}
        self._next = 0.0

    def poll(self) -> None:
        """Ask, or look whether the answers are there; returns at once."""
        if not self._missing:
            return
        self._client.poll(0)
        for name in [name for name, future in self._asked.items() if future.done()]:
            self._settle(name, self._asked.pop(name))
        now = time.monotonic()
        if self._missing and not self._asked and now >= self._next:
            self._next = now + RETRY
            asked = list(self._missing.values())
            self._asked = dict(self._client.create_topics(asked, request_timeout=REQUEST_TIMEOUT))

    def _settle(self, name: str, answer: Future[Any]) -> None:
        failure = answer.exception()
        if failure is None:
            made = self._missing.pop(name)
            say(logging.INFO, "topic made", topic=name, partitions=made.num_partitions)
            return
        if not isinstance(failure, KafkaException):
            raise failure
        error: KafkaError = failure.args[0]
        if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            del self._missing[name]
        elif error.code() in _FINAL:
            del self._missing[name]
            say(logging.WARNING, "the topic could not be made; make it yourself if it is missing", topic=name,
                cause=error.str())  # fmt: skip
        # Anything else passes: the brokers are away, or have no controller yet. The client tells of it by itself.
