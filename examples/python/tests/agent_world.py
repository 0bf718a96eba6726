"""A real Kafka, a real sidecar and agents as processes, for the tests of the agent."""

from __future__ import annotations

import atexit
import errno
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import agent_graphs
import pytest
from binary import sidecar_binary
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import NewTopic
from kafka import Kafka

from workflow_results import SidecarClient
from workflow_results.events import EventType, WorkflowEvent

TESTS = Path(__file__).parent
TIMEOUT = 60.0  # seconds

# So that the group soon gives a killed agent's partitions to another, even if it died in a rebalance.
QUICK = {"session.timeout.ms": 6000, "max.poll.interval.ms": 10_000}


class Agent:
    """An agent's process; its log can be waited for."""

    def __init__(self, args: list[str], env: dict[str, str], command: str = "run") -> None:
        self.lines: list[str] = []
        self._grew = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            # setpriv: the kernel ends it if this process dies without a word.
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "workflow_results.agent", command, *args],
            env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def await_log(self, *texts: str, count: int = 1) -> list[str]:
        """Wait for as many lines that have all of the texts."""

        def found() -> list[str]:
            return [line for line in self.lines if all(text in line for text in texts)]

        with self._grew:
            self._grew.wait_for(lambda: self._ended or len(found()) >= count, TIMEOUT)
            assert len(found()) >= count, f"{texts} not logged {count} times:\n" + "\n".join(self.lines)
            return found()

    def wait(self, timeout: float = TIMEOUT) -> int:
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._grew:
                self.lines.append(line.rstrip())
                self._grew.notify_all()
        with self._grew:
            self._ended = True
            self._grew.notify_all()


class World:
    """Topics, a sidecar and agents of one test."""

    def __init__(
        self,
        kafka: Kafka,
        directory: Path,
        partitions: int = 2,
        triggers: str | None = None,
        results: str | None = None,
    ) -> None:
        """Make its topics, but for the results': the sidecar does that. Names that are left out are new ones."""
        self.kafka = kafka
        self.directory = directory
        name = str(uuid4())
        self.triggers = kafka.create_topic(triggers or f"triggers-{name}", partitions)
        self.dead_letters = kafka.create_topic(f"dlq-{name}")
        self.results_topic = results or f"results-{name}"
        self.group = f"group-{name}"
        self.socket = str(directory / "s")
        self.runs_file = directory / "runs"
        self.agents: list[Agent] = []
        self._sidecar: subprocess.Popen[bytes] | None = None
        self.client = SidecarClient(self.socket, deadline=TIMEOUT)

    def start_sidecar(self) -> None:
        binary = sidecar_binary()
        self._sidecar = subprocess.Popen(
            [
                "setpriv", "--pdeathsig", "KILL", binary, "run", "--brokers", self.kafka.addr,
                "--topic", self.results_topic, "--socket", self.socket,
                "--data-dir", str(self.directory / "data"), "--linger", "0s", "--log-level", "error",
                "--shutdown-timeout", "2s",
            ]
        )  # fmt: skip
        self.client.status()  # waits for the socket

    @property
    def sidecar_running(self) -> bool:
        return self._sidecar is not None

    def stop_sidecar(self) -> None:
        assert self._sidecar is not None
        self._sidecar.terminate()
        assert self._sidecar.wait(TIMEOUT) == 0
        self._sidecar = None

    def kill_sidecar(self) -> None:
        if self._sidecar is not None:
            self._sidecar.kill()
            self._sidecar.wait(TIMEOUT)
            self._sidecar = None

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
            "RUNS": str(self.runs_file),
            "CHECKPOINTS": str(self.directory / "checkpoints"),
        }

    def agent(self, graph: str = "graph", *args: str, kafka: dict[str, Any] | None = None) -> Agent:
        more = list(args)
        if kafka:
            path = self.directory / f"kafka-{uuid4()}.json"
            path.write_text(json.dumps(kafka))
            more += ["--kafka-config", str(path)]
        made = Agent(
            [
                f"agent_graphs:{graph}", "--brokers", self.kafka.addr, "--socket", self.socket,
                "--group-id", self.group,
                "--triggers-topic", self.triggers, "--dead-letter-topic", self.dead_letters, *more,
            ],
            self.env,
        )  # fmt: skip
        self.agents.append(made)
        return made

    def resume(self, event_id: str, *args: str, graph: str = "durable") -> subprocess.CompletedProcess[str]:
        """Run the agent's command `resume` to its end."""
        return subprocess.run(
            [
                sys.executable, "-m", "workflow_results.agent", "resume", f"agent_graphs:{graph}",
                "--socket", self.socket, "--correlation-id", event_id, *args,
            ],
            env=self.env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def trigger(self, partition: int = 0, workflow_id: str = "w", **payload: Any) -> str:
        """Send a trigger; returns its event ID."""
        event = WorkflowEvent(
            event_type=EventType.WORKFLOW_TRIGGERED, workflow_id=workflow_id, workflow_run_id="r", payload=payload
        )
        self.kafka.publish(self.triggers, (str(event.event_id), event.to_json()), partition=partition)
        return str(event.event_id)

    def gate(self) -> str:
        path = self.directory / f"gate-{uuid4()}"
        os.mkfifo(path)
        return str(path)

    def results(self, *correlation_ids: str) -> dict[str, dict[str, Any]]:
        """Wait until each has a result; then read all there is, and check that none has two."""
        eventually(lambda: all(self.client.list(correlation_id=each) for each in correlation_ids))
        eventually(lambda: self.client.status()["outbox"]["pending"] == 0)
        found: dict[str, dict[str, Any]] = {}
        for record in self.read(self.results_topic):
            value = json.loads(record.value() or b"")
            assert value["correlation_id"] not in found, "a second result of one trigger"
            found[value["correlation_id"]] = value
        assert found.keys() >= set(correlation_ids)
        return found

    def read(self, topic: str) -> list[Message]:
        """Read a topic from its beginning to its end, committed records alone."""
        consumer = Consumer({
            "bootstrap.servers": self.kafka.addr, "group.id": str(uuid4()), "isolation.level": "read_committed",
            "enable.partition.eof": True, "enable.auto.commit": False, "log_level": 2,
        })  # fmt: skip
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in partitions])
        ended: set[Any] = set()
        records: list[Message] = []
        while len(ended) < len(partitions):
            message = consumer.poll(TIMEOUT)
            assert message is not None, f"the end of {topic} does not come"
            error = message.error()
            if error is None:
                records.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition())
        consumer.close()
        return records

    def committed(self, partition: int = 0) -> int:
        """Ask the group for its offset; below 0: none."""
        consumer = Consumer({"bootstrap.servers": self.kafka.addr, "group.id": self.group, "log_level": 2})
        try:
            return consumer.committed([TopicPartition(self.triggers, partition)], 30)[0].offset
        finally:
            consumer.close()

    def await_committed(self, offset: int, partition: int = 0) -> None:
        eventually(lambda: self.committed(partition) == offset)

    def runs(self, event_id: str, what: str = "begin") -> int:
        lines = self.runs_file.read_text().splitlines() if self.runs_file.exists() else []
        return lines.count(f"{what} {event_id}")

    def await_run(self, event_id: str, what: str) -> None:
        eventually(lambda: self.runs(event_id, what) > 0)

    def await_checkpoint(self, event_id: str, node: str) -> None:
        """Wait until the checkpointer holds that this node is next: LangGraph stores it beside the node's run."""

        def is_held() -> bool:
            graph = agent_graphs.build(agent_graphs.work, agent_graphs.FileSaver(self.env["CHECKPOINTS"]))
            return bool(graph.get_state({"configurable": {"thread_id": event_id}}).next == (node,))

        eventually(is_held)

    def create_dead_letters(self, settings: dict[str, str]) -> None:
        topic = NewTopic(self.dead_letters, 1, 1, config=settings)
        self.kafka.admin.create_topics([topic])[self.dead_letters].result(30)

    def close(self) -> None:
        for n, each in enumerate(self.agents):
            each.kill()
            print(f"the log of agent {n}:", *each.lines, sep="\n")  # pytest shows it when the test fails
        self.kill_sidecar()
        self.client.close()


def hold(gate: str) -> int:
    """Wait until a run is at its gate, and keep it there; to close the returned descriptor lets it go on."""
    opened: list[int] = []

    def is_there() -> bool:
        try:
            opened.append(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as e:
            if e.errno != errno.ENXIO:
                raise
            return False  # nobody waits there yet
        return True

    eventually(is_there)
    return opened[0]


def release(gate: str) -> None:
    """Let a run go on that waits at its gate, or is about to."""
    os.close(hold(gate))


def eventually(condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout} s"
        time.sleep(0.05)


class PromptKafka(Kafka):
    """A broker whose groups begin at once: by default each waits three seconds for more members."""

    def _properties(self) -> list[str]:
        return [*super()._properties(), "group.initial.rebalance.delay.ms=0"]


@functools.cache
def shared_kafka() -> Kafka:
    kafka = PromptKafka()
    atexit.register(kafka.close)
    return kafka


@pytest.fixture(name="world")
def world_fixture() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="wr") as directory:
        made = World(shared_kafka(), Path(directory))
        made.start_sidecar()
        yield made
        made.close()
