"""How to reach Kafka: a configuration of confluent-kafka, completed for each kind of client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any
from uuid import uuid4

from confluent_kafka import KafkaError

ErrorCallback = Callable[[KafkaError], None]

_LOGGER = logging.getLogger("workflow_results.kafka")

# What a given configuration may change, and what it may not (FORCED).
_DEFAULTS = {
    "client.id": "workflow-results",
    "reconnect.backoff.max.ms": 2000,  # a broker that is back is found soon
    "log_level": 2,  # of librdkafka; what it would log of connections several times a second is told as trouble
}
_CONSUMER_DEFAULTS = {
    "fetch.message.max.bytes": 262_144,  # of a partition at once, compressed; a larger record comes all the same
    "queued.max.messages.kbytes": 8192,  # the most that is held in memory ahead of us
    "fetch.queue.backoff.ms": 10,  # a full queue is emptied within milliseconds, not within the default second
}
_PRODUCER_DEFAULTS = {
    "partitioner": "murmur2_random",  # a key goes where the clients of Java and Go would put it
    "linger.ms": 0,
    "topic.metadata.propagation.max.ms": 10_000,  # how long a topic may be missing; then it is told
}
_PRODUCER_FORCED = {"enable.idempotence": True, "acks": "all"}  # what is retried is not written twice
# A reader that sees committed records only, and leaves nothing behind on the brokers.
_CONSUMER_FORCED = {
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",  # an offset that is gone: read what is there rather than miss something
}


class Connection:
    """A configuration; two that are the same have the same ``key``."""

    def __init__(self, bootstrap_servers: str | Mapping[str, Any], config: Mapping[str, Any] | None = None) -> None:
        """Take host:port,… or a whole configuration, and what to add to it (SASL, SSL, …).

        Raises:
            ValueError: there are no brokers in it.
        """
        if isinstance(bootstrap_servers, str):
            bootstrap_servers = {"bootstrap.servers": bootstrap_servers}
        self._config = {**_DEFAULTS, **bootstrap_servers, **(config or {})}
        if not self._config.get("bootstrap.servers"):
            raise ValueError("bootstrap.servers is missing: give the brokers as host:port,host:port")
        self._config.setdefault("logger", _LOGGER)

    @property
    def key(self) -> Hashable:
        """What tells configurations apart. It is good for as long as this connection lives: see `_hashable`."""
        return tuple(sorted((name, _hashable(value)) for name, value in self._config.items() if value is not None))

    def admin(self, on_error: ErrorCallback) -> dict[str, Any]:
        """Complete the configuration of an admin client."""
        return self._config | self._error_callback(on_error)

    def producer(self, on_error: ErrorCallback, **more: Any) -> dict[str, Any]:
        """Complete the configuration of a producer."""
        return _PRODUCER_DEFAULTS | self._config | _PRODUCER_FORCED | more | self._error_callback(on_error)

    def consumer(self, on_error: ErrorCallback, **more: Any) -> dict[str, Any]:
        """Complete the configuration of a consumer. Its group is never joined and nothing is committed to it."""
        group = {"group.id": f"workflow-results-{uuid4()}"}
        return _CONSUMER_DEFAULTS | self._config | _CONSUMER_FORCED | group | more | self._error_callback(on_error)

    def _error_callback(self, ours: ErrorCallback) -> dict[str, Any]:
        theirs: ErrorCallback | None = self._config.get("error_cb")

        def tell(error: KafkaError) -> None:
            ours(error)
            if theirs is not None:
                theirs(error)

        return {"error_cb": tell}


def _hashable(value: Any) -> Hashable:
    """Make a value comparable: callables by themselves, what has no hash by its identity."""
    try:
        hash(value)
    except TypeError:
        return "id", id(value)
    return str(value) if isinstance(value, str | int | float) else value
