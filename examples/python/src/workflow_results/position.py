"""Positions in the results topic, taken before a trigger, and the memory of them in this process."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from workflow_results.result import ResultStreamError
from workflow_results.topic import Offsets, TopicAdmin

# Opaque to whoever carries it, and JSON: {"topic": …, "topic_id": …, "offsets": {"0": 17, …}}.
Position = dict[str, Any]

MAX_REMEMBERED = 10_000
RETRY_DELAY = 0.1  # seconds

_FINAL = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION}


def take(admin: TopicAdmin, topic: str, timeout: float) -> Position:
    """Ask for the present end of every partition.

    What is published afterwards lies behind it. A topic that is not there yet
    has no offsets, and is read from its start.

    Args:
        timeout: seconds in which brokers that are away and leaders that move are asked again.

    Raises:
        ResultStreamError: they did not answer, or do not let us ask.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _ask(admin, topic, max(deadline - time.monotonic(), 0.001))
        except KafkaException as e:
            admin.poll()
            error = e.args[0]
            if time.monotonic() + RETRY_DELAY >= deadline or error.code() in _FINAL:
                told = f"{error} ({admin.last_error})" if admin.last_error else str(error)
                raise ResultStreamError(topic, f"the ends of its partitions are unknown: {told}") from e
        time.sleep(RETRY_DELAY)


def _ask(admin: TopicAdmin, topic: str, timeout: float) -> Position:
    try:
        description = admin.describe(timeout).result()
    except KafkaException as e:
        if e.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return {"topic": topic, "topic_id": None, "offsets": {}}
        raise
    ends = admin.high_watermarks([each.id for each in description.partitions], timeout)
    offsets = {str(partition): end for partition, end in ends.items()}
    return {"topic": topic, "topic_id": str(description.topic_id), "offsets": offsets}


def offsets(position: Mapping[str, Any], topic: str) -> Offsets:
    """Read the offsets of a position.

    Raises:
        ValueError: it is no position, or one in another topic.
    """
    try:
        named, found = position["topic"], {int(p): int(offset) for p, offset in position["offsets"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError("not a position: give what mark() returned, unchanged") from e
    if named != topic:
        raise ValueError(f"the position is one in topic {named}, but the results are awaited in topic {topic}")
    return found


_remembered: OrderedDict[tuple[str, str], Position] = OrderedDict()
_lock = threading.Lock()
# Held over a fork, so that a child never finds it taken by a thread that it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def remember(event_id: str, position: Position) -> None:
    """Keep the position of a trigger for the poller in the same process; the oldest of 10 000 goes."""
    with _lock:
        _remembered[event_id, position["topic"]] = position
        while len(_remembered) > MAX_REMEMBERED:
            _remembered.popitem(last=False)


def recall(event_id: str, topic: str) -> Position | None:
    """Return the position that was remembered for a trigger, if any."""
    with _lock:
        return _remembered.get((event_id, topic))
