"""One thread per process that reads the results topic for everybody who waits.

A waiter is registered first; then what lies between its beginning and where the
hub reads is read again (`Backfill`). So nothing falls between the two. Only the
hub's thread matches records with waiters, hence a waiter is registered and the
hub's place is noted at one moment, without a lock.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka.admin import TopicDescription  # type: ignore[attr-defined]

from workflow_results.backfill import LOOKUP_TIMEOUT, Backfill
from workflow_results.connection import Connection
from workflow_results.reader import Reader
from workflow_results.result import ResultStreamError, WorkflowResult
from workflow_results.topic import TopicAdmin
from workflow_results.waiter import Waiter

LINGER = 30.0  # seconds that a hub stays for a next waiter
CHECK_INTERVAL = 3.0  # seconds between looks at the topic: a silent one and a dead broker look alike
RETRY_DELAY = 0.25  # seconds after a trouble
LIVE_WAIT = 0.1  # seconds; also how long a new waiter waits to be registered
BACKFILL_WAIT = 0.02

_log = logging.getLogger("workflow_results.hub")


class Hub:
    """Reads one topic over one connection. `join` and `leave` are for other threads."""

    def __init__(self, key: Hashable, connection: Connection, topic: str) -> None:
        """Prepare the hub; `start` starts its thread."""
        self.records = 0  # read so far
        self._key = key
        self._connection = connection
        self._topic = topic
        self._arrivals: list[Waiter] = []  # under _lock
        self._departures: list[Waiter] = []  # under _lock
        self._joining: list[Waiter] = []  # the topic has not been found yet
        self._waiting: dict[bytes, list[Waiter]] = {}
        # What is wrong, by what it is wrong with; gone when that goes well again.
        self._troubles: dict[str, str] = {"brokers": "the brokers have not answered yet"}
        self._topic_id: str | None = None
        self._check: Future[TopicDescription] | None = None
        self._check_at = 0.0
        self._idle_since = time.monotonic()
        self._stopping = threading.Event()
        # Made in the thread.
        self._admin: TopicAdmin
        self._live: Reader
        self._backfill: Backfill
        self._closers: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name=f"workflow-results-{topic}", daemon=True)

    @property
    def trouble(self) -> str | None:
        """Tell what is wrong at present."""
        return "; ".join(self._troubles.copy().values()) or None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def arrive(self, waiter: Waiter) -> None:
        """Register a waiter; the caller holds _lock."""
        self._arrivals.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Deregister a waiter that has given up; one that was answered is gone already."""
        with _lock:
            self._departures.append(waiter)

    def stop(self) -> None:
        """Tell the thread to end; whoever still waits gets a ResultStreamError."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended and its consumers are closed."""
        self._thread.join(timeout)

    # All below runs in the hub's thread.

    def _run(self) -> None:
        cause = "the process ends"
        try:
            self._make_clients()
            while not self._stopping.is_set() and not self._is_over():
                self._turn()
        except BaseException as e:
            cause = f"the thread that reads it ended: {type(e).__name__}: {e}"
            _log.exception("the reading of topic %s ended", self._topic)
        finally:
            self._end(cause)

    def _make_clients(self) -> None:
        self._admin = TopicAdmin(self._connection, self._topic, self._on_error)
        self._live = Reader(self._connection, self._topic, self._on_error, self._on_read)
        self._closers.append(self._live.close)
        history = Reader(self._connection, self._topic, self._on_error, self._on_read, BACKFILL_WAIT)
        self._closers.append(history.close)
        self._backfill = Backfill(history, self._admin)

    def _turn(self) -> None:
        self._admin.poll()
        self._check_topic()
        self._come_and_go()
        self._admit()
        if self._backfill.owed:
            self._begin_backfill()
        busy = self._backfill.active
        live = self._live.read(0 if busy else LIVE_WAIT)
        self._match(live, live=True)
        self._match(self._backfill.read(0 if live else BACKFILL_WAIT), live=False)
        for waiter in self._backfill.finished():
            self._settle(waiter)

    # The topic

    def _check_topic(self) -> None:
        """Ask for the topic now and then; look whether the answer has come; never wait for it."""
        if self._check is None:
            if time.monotonic() >= self._check_at:
                self._check = self._admin.describe(CHECK_INTERVAL)
            return
        if not self._check.done():
            return
        check, self._check = self._check, None
        try:
            self._follow(check.result())
        except KafkaException as e:
            self._tell("topic", f"the topic was asked for in vain: {e.args[0]}")
            self._check_at = time.monotonic() + RETRY_DELAY
        else:
            self._troubles.pop("topic", None)
            self._troubles.pop("brokers", None)
            self._check_at = time.monotonic() + CHECK_INTERVAL

    def _follow(self, found: TopicDescription) -> None:
        """Begin to read a topic that was found, or take up what has changed about it."""
        partitions = [each.id for each in found.partitions]
        if self._topic_id is None:
            # At the last stable offset: a transaction that is open now is read live when it is committed.
            self._live.assign(self._admin.stable_ends(partitions, LOOKUP_TIMEOUT))
        elif self._topic_id != str(found.topic_id):
            self._restart(partitions)
        else:
            added = {partition: 0 for partition in partitions if partition not in self._live.next}
            if added:  # from their start: all in them is new
                self._live.add(added)
        self._topic_id = str(found.topic_id)

    def _restart(self, partitions: list[int]) -> None:
        """Read a topic that was deleted and made anew from its start: all in it is new."""
        _log.warning("topic %s was deleted and made anew; it is read from its start", self._topic)
        self._backfill.drop()
        self._live.assign(dict.fromkeys(partitions, 0))
        for waiter in [each for same in self._waiting.values() for each in same]:
            waiter.restart()
            if waiter.held is not None:
                self._answer(waiter, waiter.held)

    # The waiters

    def _come_and_go(self) -> None:
        with _lock:  # both at once: nobody's departure may be seen before the arrival
            arrivals, self._arrivals = self._arrivals, []
            departures, self._departures = self._departures, []
        self._joining += arrivals
        for waiter in departures:
            if waiter in self._joining:
                self._joining.remove(waiter)
            self._remove(waiter)

    def _admit(self) -> None:
        if not self._joining or self._topic_id is None:
            return
        until = dict(self._live.next)  # one for all of them
        for waiter in self._joining:
            waiter.join(self._topic_id, until, self.records)
            self._waiting.setdefault(waiter.key, []).append(waiter)
            self._backfill.add(waiter)
        self._joining = []

    def _remove(self, waiter: Waiter) -> None:
        same = self._waiting.get(waiter.key, [])
        if waiter in same:
            same.remove(waiter)
        if not same:
            self._waiting.pop(waiter.key, None)

    def _begin_backfill(self) -> None:
        try:
            self._backfill.begin()
            self._troubles.pop("begin", None)
        except KafkaException as e:
            self._tell("begin", f"what was published before could not be read yet: {e.args[0]}")

    def _match(self, records: list[Message], *, live: bool) -> None:
        self.records += len(records)
        for record in records:
            key = record.key()
            if key in self._waiting:
                self._offer(record, self._waiting[key], live=live)

    def _offer(self, record: Message, waiters: list[Waiter], *, live: bool) -> None:
        for waiter in list(waiters):
            if not waiter.accepts(record):
                continue
            found = waiter.read(record)
            if found is None:
                continue
            if live and not waiter.settled:  # an earlier one may be found yet, and the first one counts
                waiter.held = waiter.held or found
            else:
                self._answer(waiter, found)

    def _settle(self, waiter: Waiter) -> None:
        waiter.settled = True
        if waiter.held is not None and not waiter.future.done():
            self._answer(waiter, waiter.held)

    def _answer(self, waiter: Waiter, found: WorkflowResult) -> None:
        self._remove(waiter)
        if waiter.future.set_running_or_notify_cancel():
            waiter.future.set_result(found)

    # Troubles and the end

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise KafkaException(error)
        self._tell("brokers", str(error))

    def _on_read(self, trouble: str | None) -> None:
        if trouble is None:
            self._troubles.pop("reading", None)
        else:
            self._tell("reading", trouble)

    def _tell(self, of: str, trouble: str) -> None:
        """Keep a trouble for those who time out; log the first of its kind, quietly where nobody waits."""
        if of not in self._troubles:
            level = logging.WARNING if self._waiting or self._joining else logging.DEBUG
            _log.log(level, "topic %s: %s; trying on", self._topic, trouble)
        self._troubles[of] = trouble

    def _is_over(self) -> bool:
        """Say whether nobody has waited for long; from then on no waiter finds this hub."""
        now = time.monotonic()
        if self._waiting or self._joining:
            self._idle_since = now
        if now - self._idle_since < LINGER:
            return False
        with _lock:
            if not self._arrivals:
                _hubs.pop(self._key, None)
                return True
        self._idle_since = now
        return False

    def _end(self, cause: str) -> None:
        with _lock:
            if _hubs.get(self._key) is self:
                del _hubs[self._key]
            left = self._arrivals + self._joining
        for waiter in left + [each for same in self._waiting.values() for each in same]:
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_exception(ResultStreamError(self._topic, cause))
        self._waiting.clear()
        for close in self._closers:
            try:
                close()
            except Exception:  # the waiters have been told why it ended; this is beside that
                _log.exception("a consumer of topic %s was not closed", self._topic)


_hubs: dict[Hashable, Hub] = {}
# A thread that holds it may take it again: the garbage collector may find an abandoned wait there, and end it.
_lock = threading.RLock()


def join(connection: Connection, topic: str, waiter: Waiter) -> Hub:
    """Register a waiter with this process's hub for the topic, which is made if there is none."""
    key = (connection.key, topic)
    with _lock:
        hub = _hubs.get(key)
        if hub is None:
            hub = Hub(key, connection, topic)
            _hubs[key] = hub
            hub.start()
        hub.arrive(waiter)
    return hub


def _abandon_after_fork() -> None:
    """Leave the hubs to the parent: their threads are not in this child, which gets its own when it waits."""
    _hubs.clear()
    _lock.release()


@atexit.register
def _stop_all() -> None:
    with _lock:
        hubs = list(_hubs.values())
    for hub in hubs:
        hub.stop()
    for hub in hubs:
        hub.join(timeout=5.0)


# Held over a fork, so that a child never finds it taken by a thread that it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_abandon_after_fork)
