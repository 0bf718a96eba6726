"""Waits for the results of workflows, in threads or with asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from workflow_results import hub, position
from workflow_results._process import PerProcess
from workflow_results.connection import Connection
from workflow_results.position import Position
from workflow_results.result import ResultTimeout, WorkflowResult
from workflow_results.topic import TopicAdmin
from workflow_results.waiter import Waiter

SKEW = timedelta(minutes=5)  # how far the clocks of publisher, broker and waiter may differ
LOOK_BACK = timedelta(hours=1)  # of a wait that was told nothing
MARK_TIMEOUT = 10.0  # seconds

Since = datetime | timedelta


class _Poller:
    """What both pollers share."""

    def __init__(
        self,
        bootstrap_servers: str | Mapping[str, Any] = "localhost:9092",
        topic: str = "workflow-results",
        timeout: float = 300.0,
        poll_interval: float = 1.0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Remember where the results are; nothing is opened yet.

        Args:
            bootstrap_servers: host:port,… or a configuration of confluent-kafka.
            topic: where results are published.
            timeout: seconds that a wait lasts at most, unless it says otherwise.
            poll_interval: accepted, and without effect: nothing is polled at an
                interval. A wait is woken as soon as its result has been read.
            config: more of confluent-kafka's configuration: SASL, SSL, ….

        Raises:
            ValueError: there are no brokers.
        """
        self.topic = topic
        self.timeout = timeout
        self.poll_interval = poll_interval
        self._connection = Connection(bootstrap_servers, config)
        self._admin = PerProcess(lambda: TopicAdmin(self._connection, topic))

    def _mark(self, timeout: float) -> Position:
        return position.take(self._admin.get(), self.topic, timeout)

    def _waiter(
        self, correlation_id: str | UUID, workflow_id: str | None, at: Mapping[str, Any] | None, since: Since | None
    ) -> Waiter:
        if at is not None and since is not None:
            raise ValueError("give a position or since, not both")
        try:
            key = str(UUID(str(correlation_id)))
        except ValueError as e:
            raise ValueError(
                f"correlation_id is {correlation_id!r}, no UUID: it is the event_id of the trigger, "
                "not the workflow_run_id"
            ) from e
        begin: Position | datetime | None = dict(at) if at is not None else None
        if since is not None:
            begin = _time(since) - SKEW
        if begin is None:
            begin = position.recall(key, self.topic) or _time(LOOK_BACK) - SKEW
        return Waiter(key, self.topic, workflow_id, begin)

    def _timed_out(self, joined: hub.Hub, waiter: Waiter, waited: float) -> ResultTimeout:
        troubles = [trouble for trouble in (joined.trouble, waiter.odd) if trouble]
        read = 0 if waiter.records is None else joined.records - waiter.records
        return ResultTimeout(waiter.key.decode(), self.topic, waited, waiter.begin(), read, "; ".join(troubles) or None)


class WorkflowResultPoller(_Poller):
    """Waits for results. Thread-safe, fork-safe, cheap to make.

    All waits of a process for one topic share one consumer, which joins no group
    and commits nothing: any number may wait, and nobody takes anything from
    anybody.
    """

    def mark(self, timeout: float = MARK_TIMEOUT) -> Position:
        """Return where the topic ends now, as JSON-serialisable data.

        Take it before the trigger is sent, and hand it to `poll_for_result` as
        ``position``, in this process or another: then nothing is missed, and
        nothing is read that was published before.

        Args:
            timeout: seconds in which brokers that do not answer are asked again.

        Raises:
            ResultStreamError: they did not answer, or cannot be asked with this configuration.
        """
        return self._mark(timeout)

    def poll_for_result(
        self,
        correlation_id: str | UUID,
        workflow_id: str | None = None,
        timeout: float | None = None,
        position: Mapping[str, Any] | None = None,
        since: Since | None = None,
    ) -> WorkflowResult:
        """Wait for the first result of a trigger, whatever its status.

        Where to begin is, in this order: ``position``; ``since``; the position
        that `WorkflowEventProducer` took for this trigger in this process; an
        hour ago.

        Args:
            correlation_id: the event ID of the trigger.
            workflow_id: a result of another workflow is not taken.
            timeout: seconds; the poller's own if left out.
            position: what `mark` returned before the trigger was sent.
            since: when the trigger was sent or earlier: an aware datetime, or how long ago.
                Five minutes are added, for clocks that differ.

        Raises:
            ResultTimeout: none came in time; it tells the last trouble. Brokers
                that are away and a topic that is missing are waited for.
            ResultStreamError: the topic cannot be read, for instance with this configuration.
            ValueError: an argument cannot be right.
        """
        waiter = self._waiter(correlation_id, workflow_id, position, since)
        limit = self.timeout if timeout is None else timeout
        began = time.monotonic()
        joined = hub.join(self._connection, self.topic, waiter)
        try:
            return waiter.future.result(min(max(limit, 0), threading.TIMEOUT_MAX))
        except TimeoutError:
            if not waiter.future.cancel():  # it came at this very moment
                return waiter.future.result()
            raise self._timed_out(joined, waiter, time.monotonic() - began) from None
        finally:
            waiter.future.cancel()
            joined.leave(waiter)


class AsyncWorkflowResultPoller(_Poller):
    """`WorkflowResultPoller` for asyncio: the same, as coroutines. A wait takes no thread of its own."""

    async def mark(self, timeout: float = MARK_TIMEOUT) -> Position:
        """Return where the topic ends now: see `WorkflowResultPoller.mark`."""
        return await asyncio.to_thread(self._mark, timeout)

    async def poll_for_result(
        self,
        correlation_id: str | UUID,
        workflow_id: str | None = None,
        timeout: float | None = None,
        position: Mapping[str, Any] | None = None,
        since: Since | None = None,
    ) -> WorkflowResult:
        """Wait for the first result of a trigger: see `WorkflowResultPoller.poll_for_result`.

        To cancel the task is to end the wait.
        """
        waiter = self._waiter(correlation_id, workflow_id, position, since)
        limit = self.timeout if timeout is None else timeout
        began = time.monotonic()
        joined = hub.join(self._connection, self.topic, waiter)
        try:
            async with asyncio.timeout(max(limit, 0)):
                return await asyncio.wrap_future(waiter.future)
        except TimeoutError:
            if not waiter.future.cancel():  # it came at this very moment
                return waiter.future.result()
            raise self._timed_out(joined, waiter, time.monotonic() - began) from None
        finally:
            waiter.future.cancel()
            joined.leave(waiter)


def _time(since: Since) -> datetime:
    if isinstance(since, timedelta):
        return datetime.now(UTC) - since
    if since.tzinfo is None:
        raise ValueError("since must be an aware datetime, for instance datetime.now(UTC), or a timedelta")
    return since
