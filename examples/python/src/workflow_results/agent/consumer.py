"""The agent's consumer: takes triggers, keeps its place in the group while graphs run, commits what is settled."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from workflow_results.agent.answer import Settled, ids
from workflow_results.agent.config import Config
from workflow_results.agent.dead_letter import DeadLetters
from workflow_results.agent.logs import Interval, say
from workflow_results.agent.offsets import PartitionOffsets
from workflow_results.agent.runner import Key, Runner, key_of
from workflow_results.agent.topics import TopicMaker
from workflow_results.agent.trigger import InvalidTrigger, read_trigger
from workflow_results.connection import Connection
from workflow_results.events import WorkflowEvent

POLL = 0.1  # seconds
PAUSE_AFTER = 0.5  # seconds without a free slot; shorter waits are not worth losing what was fetched ahead
COMMIT_INTERVAL = 0.2  # seconds
TROUBLE_INTERVAL = 10.0  # seconds between lines about the same trouble


class Run:
    """A trigger that runs, with the records that wait for it: it may have been read more than once."""

    def __init__(self, event: WorkflowEvent) -> None:
        """Begin without a record."""
        self.event = event
        self.claims: list[tuple[PartitionOffsets, int, Message]] = []

    def settled(self) -> None:
        """Let go of its records."""
        for offsets, offset, _ in self.claims:
            offsets.done(offset)


class Agent:
    """Takes triggers from the group's partitions to their answers.

    One thread calls all of it, librdkafka's callbacks included: those come out
    of ``poll``, ``commit`` and ``close``. Only ``stop`` may come from elsewhere.
    """

    def __init__(self, config: Config, runner: Runner) -> None:
        """Join nothing yet."""
        self._config = config
        self._runner = runner
        self._connection = Connection(config.brokers, config.kafka)
        self._consumer = Consumer(self._consumer_settings())
        self._letters = DeadLetters(self._connection, config.dead_letter_topic, config.group_id, self._on_error)
        self._topics = TopicMaker(
            self._connection, [config.triggers_topic, config.dead_letter_topic] if config.topic_partitions else [],
            config.topic_partitions, config.topic_replication_factor, self._on_error,
        )  # fmt: skip
        self._partitions: dict[tuple[str, int], PartitionOffsets] = {}
        self._paused: set[tuple[str, int]] = set()
        self._runs: dict[Key, Run] = {}
        self._full_since: float | None = None
        self._next_commit = 0.0
        self._fatal: KafkaError | None = None
        self._trouble: dict[int, Interval] = {}
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask it to take no more and to end, from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> int:
        """Work until it is stopped; returns how many runs it left behind (their offsets are not committed).

        Raises:
            KafkaException: Kafka shuts this consumer out for good.
        """
        self._consumer.subscribe(
            [self._config.triggers_topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        deadline: float | None = None
        while True:
            if self._stop.is_set() and deadline is None:
                deadline = time.monotonic() + self._config.shutdown_timeout
                say(logging.INFO, "stopping: no more triggers are taken", running=len(self._runs),
                    seconds=self._config.shutdown_timeout)  # fmt: skip
            if deadline is not None and (not self._busy() or time.monotonic() >= deadline):
                break
            self._turn()
        self._leave()
        return len(self._runs)

    def _consumer_settings(self) -> dict[str, object]:
        defaults: dict[str, object] = {
            "auto.offset.reset": "earliest",
            "max.poll.interval.ms": 60_000,  # it always polls; and a rebalance waits as long for one that died in it
        }
        if self._config.kafka.get("group.protocol", "classic") == "classic":
            # Whoever joins must not take partitions away whose graphs go on here.
            defaults["partition.assignment.strategy"] = "cooperative-sticky"
        ours = {"group.id": self._config.group_id, "enable.partition.eof": False, "on_commit": self._committed}
        return self._connection.consumer(self._on_error, **(defaults | self._config.kafka | ours))

    # One turn of the loop.

    def _turn(self) -> None:
        takes = not self._stop.is_set() and self._busy() < self._config.concurrency
        self._settle_ended(0.0 if takes else POLL)
        self._pause_or_resume(takes)
        # Without a free slot there may be messages that must not be taken, until the partitions are paused.
        if takes or self._paused >= self._partitions.keys():
            message = self._consumer.poll(POLL if takes else 0.0)
            if message is not None:
                self._take(message)
        self._letters.poll()
        self._topics.poll()
        self._commit()
        if self._fatal is not None:
            raise KafkaException(self._fatal)

    def _busy(self) -> int:
        """Count what is held in memory; runs of partitions that went to others are among them."""
        return len(self._runs) + self._letters.pending

    def _pause_or_resume(self, takes: bool) -> None:
        now = time.monotonic()
        if takes:
            self._full_since = None
            self._resume()
            return
        self._full_since = self._full_since or now
        if self._stop.is_set() or now - self._full_since >= PAUSE_AFTER:
            fresh = self._partitions.keys() - self._paused
            if fresh:
                self._consumer.pause([TopicPartition(*each) for each in fresh])
                self._paused |= fresh

    def _resume(self) -> None:
        if self._paused:
            self._consumer.resume([TopicPartition(*each) for each in self._paused])
            self._paused.clear()

    # From a record to a run, and back.

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._on_error(error)
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None
        assert partition is not None
        assert offset is not None
        offsets = self._partitions.get((topic, partition))
        if offsets is None:
            return  # it went to another a moment ago, who reads it, too
        if offsets.begins_anew(offset):  # the offsets of runs that go on mean nothing in the new topic
            offsets = self._partitions[topic, partition] = PartitionOffsets()
        offsets.begin(offset)
        value = message.value()
        try:
            event = read_trigger(value.encode() if isinstance(value, str) else value, self._config.max_trigger_bytes)
        except InvalidTrigger as e:
            self._letters.send(message, str(e), partial(offsets.done, offset))
            return
        if self._config.workflow_ids and event.workflow_id not in self._config.workflow_ids:
            say(logging.DEBUG, "a trigger of another workflow is left out", **ids(event))
            offsets.done(offset)
            return
        self._start(event, offsets, offset, message)

    def _start(self, event: WorkflowEvent, offsets: PartitionOffsets, offset: int, message: Message) -> None:
        """Run it, unless it runs: then this record waits for the same end."""
        run = self._runs.get(key_of(event))
        if run is None:
            run = self._runs[key_of(event)] = Run(event)
            self._runner.start(event)
        run.claims.append((offsets, offset, message))

    def _settle_ended(self, wait: float) -> None:
        """Take in the runs that have ended; wait for one for so many seconds."""
        while True:
            try:
                key, future = self._runner.ended.get(timeout=wait) if wait else self._runner.ended.get_nowait()
            except queue.Empty:
                return
            wait = 0.0
            settlement = future.result()  # raises what is wrong with us or the sidecar's rules: the process ends
            run = self._runs.pop(key)
            if settlement.kind is not Settled.UNPUBLISHABLE:
                run.settled()
                continue
            for offsets, offset, message in run.claims:
                self._letters.send(message, settlement.reason or "", partial(offsets.done, offset))

    # Offsets.

    def _commit(self) -> None:
        now = time.monotonic()
        if now >= self._next_commit and (due := self._due(self._partitions)):
            self._next_commit = now + COMMIT_INTERVAL
            self._consumer.commit(offsets=due, asynchronous=True)
            for each in due:  # if it fails, `_committed` takes this back
                self._partitions[each.topic, each.partition].committed = each.offset

    def _commit_now(self, which: Iterable[tuple[str, int]]) -> None:
        """Commit and wait for the answer. Without it, the next owner finds the triggers answered, and runs none again.

        What was given to commit before is given again: its answer may not have come.
        """
        due = [
            TopicPartition(*each, offset)
            for each in which
            if each in self._partitions and (offset := self._partitions[each].committable) is not None
        ]
        if not due:
            return
        try:
            self._consumer.commit(offsets=due, asynchronous=False)
        except KafkaException as e:
            say(logging.WARNING, "offsets could not be committed; their triggers are read again, and not run again",
                cause=e.args[0])  # fmt: skip

    def _due(self, which: Iterable[tuple[str, int]]) -> list[TopicPartition]:
        found = []
        for each in which:
            offset = self._partitions[each].committable
            if offset is not None and offset != self._partitions[each].committed:
                found.append(TopicPartition(*each, offset))
        return found

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Hear how an asynchronous commit went; what failed is committed again."""
        for each in partitions:
            cause = error or each.error
            offsets = self._partitions.get((each.topic, each.partition))
            if cause is None or offsets is None:
                continue
            offsets.committed = None
            self._next_commit = time.monotonic() + 5 * COMMIT_INTERVAL
            self._on_error(cause)

    # The group.

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self._partitions[each.topic, each.partition] = PartitionOffsets()
            self._paused.discard((each.topic, each.partition))
        say(logging.INFO, "partitions assigned", partitions=_names(partitions), held=len(self._partitions))

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what is done and forget the rest. Graphs that run go on: their results are published all the same."""
        self._settle_ended(0.0)
        self._commit_now([(each.topic, each.partition) for each in partitions])
        self._forget(partitions)
        say(logging.INFO, "partitions revoked", partitions=_names(partitions), held=len(self._partitions))

    def _lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget(partitions)
        say(logging.WARNING, "partitions lost: another has them already", partitions=_names(partitions))

    def _forget(self, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            self._partitions.pop((each.topic, each.partition), None)
            self._paused.discard((each.topic, each.partition))

    def _leave(self) -> None:
        """Commit what is settled and leave the group."""
        self._settle_ended(0.0)
        for run in self._runs.values():
            say(logging.WARNING, "left behind: it is read again by whoever comes next", **ids(run.event))
        self._commit_now(list(self._partitions))
        self._consumer.close()

    def _on_error(self, error: KafkaError) -> None:
        """Remember what is fatal; tell the rest, for librdkafka tries on by itself."""
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = error
        elif self._trouble.setdefault(error.code(), Interval(TROUBLE_INTERVAL)).due():
            say(logging.WARNING, "trouble with Kafka; trying on", error=error.name(), cause=error.str())


def _names(partitions: list[TopicPartition]) -> str:
    return ",".join(f"{each.topic}/{each.partition}" for each in partitions)
