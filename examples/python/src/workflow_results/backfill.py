"""Reads what lies between where waiters begin and where the hub reads live."""

from __future__ import annotations

from confluent_kafka import Message

from workflow_results.reader import Reader
from workflow_results.topic import Offsets, TopicAdmin
from workflow_results.waiter import Waiter

LOOKUP_TIMEOUT = 3.0  # seconds


class Backfill:
    """Goes in rounds: a round serves all who have joined since the last one began, with one reading.

    Where a round ends, `Waiter.until`, the hub had read already: no transaction
    is open below it, so a round never waits for one.
    """

    def __init__(self, reader: Reader, admin: TopicAdmin) -> None:
        """Take a reader of its own."""
        self._reader = reader
        self._admin = admin
        self._queue: list[Waiter] = []
        self._served: list[Waiter] = []
        self._targets: Offsets = {}  # of the partitions that this round has still to read

    @property
    def active(self) -> bool:
        """Say whether a round is under way."""
        return bool(self._served)

    @property
    def owed(self) -> bool:
        """Say whether a round is to be begun."""
        return bool(self._queue) and not self.active

    def add(self, waiter: Waiter) -> None:
        """Serve the waiter in the next round."""
        self._queue.append(waiter)

    def begin(self) -> None:
        """Begin a round.

        Raises:
            KafkaException: the brokers did not say where a time lies or who leads a partition; try again.
        """
        queue = [waiter for waiter in self._queue if not waiter.future.done()]
        starts: Offsets = {}
        targets: Offsets = {}
        by_time = self._earliest(queue)
        for waiter in queue:
            for partition, until in waiter.until.items():
                start = waiter.position.get(partition, 0) if waiter.since is None else by_time.get(partition, until)
                if start < until:
                    starts[partition] = min(start, starts.get(partition, start))
                    targets[partition] = max(until, targets.get(partition, until))
        self._reader.assign(starts)
        self._queue, self._served, self._targets = [], queue, targets

    def read(self, wait: float) -> list[Message]:
        """Read on. While there is nothing to read this serves the consumer's callbacks."""
        return self._reader.read(wait if self._targets else 0)

    def finished(self) -> list[Waiter]:
        """Return those whom a round has served to the end, once."""
        reached = self._reader.next
        self._targets = {p: target for p, target in self._targets.items() if reached[p] < target}
        if self._targets and not all(waiter.future.done() for waiter in self._served):
            return []
        served, self._served, self._targets = self._served, [], {}
        if served:
            self._reader.assign({})
        return served

    def drop(self) -> None:
        """Forget everybody: the topic was made anew."""
        self._queue, self._served, self._targets = [], [], {}
        self._reader.assign({})

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()

    def _earliest(self, waiters: list[Waiter]) -> Offsets:
        """Look up the earliest of the waiters' times; `Waiter.accepts` knows each one's own."""
        times = [waiter.since for waiter in waiters if waiter.since is not None]
        if not times:
            return {}
        partitions = {partition for waiter in waiters for partition in waiter.until}
        return self._admin.since(partitions, min(times), LOOKUP_TIMEOUT)
