"""A real Apache Kafka for the tests: one KRaft node on 127.0.0.1, from the jars that `make kafka` fetches."""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

ROOT = Path(__file__).parents[3]
MODULES = "org.apache.kafka.common.security"
PASSWORD = "s3cret"  # of User:waiter and User:stranger
READY_TIMEOUT = 120.0  # seconds, on a slow, busy machine


class Kafka:
    """A broker whose data goes with it; it ends with this process, at the latest."""

    def __init__(self) -> None:
        self._libs = _libs()
        self._directory = Path(tempfile.mkdtemp(prefix="wr-kafka-"))
        broker, secure, controller = _free_ports(3)
        self.addr = f"127.0.0.1:{broker}"
        self.secure_addr = f"127.0.0.1:{secure}"  # with SASL, for those who may do only what ACLs say
        self._controller = f"127.0.0.1:{controller}"
        self._settings = self._directory / "server.properties"
        self._settings.write_text("\n".join([*self._properties(), ""]))
        self._log = self._directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._format()
        self.start()

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start the broker, on the same ports and data as before; returns when it serves."""
        assert self._process is None, "Kafka runs already"
        with self._log.open("ab") as log:
            # setpriv: the kernel ends the broker if this process dies without a word.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._java("-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1",
                 "-XX:+UseSerialGC"), "kafka.Kafka", str(self._settings)],
                cwd=self._directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._until_ready()

    def stop(self) -> None:
        """End the broker at once (SIGKILL) and wait for it."""
        assert self._process is not None, "Kafka does not run"
        self._process.kill()
        self._process.wait(60)
        self._process = None

    def close(self) -> None:
        """Stop the broker, if it runs, and remove its data."""
        if self._process is not None:
            self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @functools.cached_property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.addr, "log_level": 2})

    def create_topic(self, name: str, partitions: int = 1) -> str:
        self.admin.create_topics([NewTopic(name, partitions, 1)])[name].result(30)
        return name

    def delete_topic(self, name: str) -> None:
        self.admin.delete_topics([name])[name].result(30)

    def add_partitions(self, name: str, total: int) -> None:
        self.admin.create_partitions([NewPartitions(name, total)])[name].result(30)

    def let_waiter_read(self, topic: str) -> None:
        """Give User:waiter the right to read the topic, and none beside."""
        self.allow("waiter", ResourceType.TOPIC, topic, AclOperation.READ)

    def allow(self, user: str, kind: ResourceType, name: str, operation: AclOperation) -> None:
        """Give a user one right."""
        rule = AclBinding(
            kind, name, ResourcePatternType.LITERAL, f"User:{user}", "*", operation, AclPermissionType.ALLOW
        )
        self.admin.create_acls([rule])[rule].result(30)

    def producer(self, **config: Any) -> Producer:
        given = {name.replace("_", "."): value for name, value in config.items()}
        return Producer({"bootstrap.servers": self.addr, "linger.ms": 0, "log_level": 2, **given})

    def transaction(self) -> Producer:
        """Begin a transaction; the caller commits or aborts it."""
        producer = self.producer(transactional_id=str(uuid4()))
        producer.init_transactions(60)
        producer.begin_transaction()
        return producer

    def publish(
        self, topic: str, *records: tuple[str | bytes | None, bytes], partition: int = -1, timestamp: int = 0
    ) -> None:
        """Write (key, value) records and wait until the broker has them."""
        producer = self.producer()
        failed: list[Any] = []
        for key, value in records:
            producer.produce(
                topic, value, key, partition, timestamp=timestamp,
                on_delivery=lambda err, _: failed.append(err) if err else None,
            )  # fmt: skip
        assert producer.flush(60) == 0
        assert not failed, failed[0]

    def _properties(self) -> list[str]:
        return [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{self._controller}",
            f"listeners=PLAINTEXT://{self.addr},SECURE://{self.secure_addr},CONTROLLER://{self._controller}",
            f"advertised.listeners=PLAINTEXT://{self.addr},SECURE://{self.secure_addr}",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_PLAINTEXT",
            "listener.name.secure.sasl.enabled.mechanisms=PLAIN,OAUTHBEARER",
            f"listener.name.secure.plain.sasl.jaas.config={MODULES}.plain.PlainLoginModule required"
            f' user_waiter="{PASSWORD}" user_stranger="{PASSWORD}";',
            f"listener.name.secure.oauthbearer.sasl.jaas.config={MODULES}.oauthbearer.OAuthBearerLoginModule required"
            ' unsecuredLoginStringClaim_sub="broker";',
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
            "inter.broker.listener.name=PLAINTEXT",
            "controller.listener.names=CONTROLLER",
            f"log.dirs={self._directory / 'data'}",
            "auto.create.topics.enable=false",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=3",
            "log.cleaner.dedupe.buffer.size=16777216",
            "num.network.threads=2",
            "num.io.threads=4",
        ]

    def _java(self, *options: str) -> list[str]:
        return ["java", *options, "-cp", str(self._libs / "*")]

    def _format(self) -> None:
        command = [*self._java("-Xmx128m"), "kafka.tools.StorageTool", "format", "--cluster-id",
                   "dGVzdGtpdC1jbHVzdGVyIQ", "--config", str(self._settings)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def _until_ready(self) -> None:
        """Try what tests begin with: metadata, and a transactional producer's ID."""
        assert self._process is not None
        deadline = time.monotonic() + READY_TIMEOUT
        producer = self.producer(transactional_id="probe")
        while True:
            try:
                producer.init_transactions(5)
                return
            except KafkaException as e:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"Kafka does not start: {e}\n{self._log.read_text()[-8000:]}") from e


def _libs() -> Path:
    libs = Path(os.environ.get("KAFKA_LIBS", ROOT / ".cache" / "kafka" / "libs"))
    if not list(libs.glob("kafka_*.jar")):
        pytest.fail(f"no Kafka in {libs}: run `make kafka`, or set KAFKA_LIBS to a directory with its jars")
    return libs


def _free_ports(n: int) -> list[int]:
    """Find free ports below those that the kernel gives to outgoing connections: a stopped broker's stays free."""
    held: list[socket.socket] = []
    while len(held) < n:
        probe = socket.socket()
        try:
            probe.bind(("127.0.0.1", random.randrange(20000, 32000)))
        except OSError:
            probe.close()
        else:
            held.append(probe)
    ports = [probe.getsockname()[1] for probe in held]
    for probe in held:
        probe.close()
    return ports


@functools.cache
def _shared() -> Kafka:
    kafka = Kafka()
    atexit.register(kafka.close)
    return kafka


@pytest.fixture(scope="session", name="kafka")
def kafka_fixture() -> Kafka:
    """The broker that all tests share."""
    return _shared()


@pytest.fixture(name="own_kafka")
def own_kafka_fixture() -> Iterator[Kafka]:
    """A broker of this test alone, to be stopped and started."""
    kafka = Kafka()
    yield kafka
    kafka.close()


@pytest.fixture(name="topic")
def topic_fixture(kafka: Kafka) -> str:
    """A new topic with two partitions."""
    return kafka.create_topic(f"results-{uuid4()}", 2)


def event(correlation_id: UUID | str, n: int = 0, **more: Any) -> bytes:
    """The value of a result record, with the payload {"n": n}."""
    fields = {
        "event_type": "workflow.result", "event_id": str(uuid4()), "correlation_id": str(correlation_id),
        "workflow_id": "w", "workflow_run_id": "r", "result": {"n": n}, "status": "success",
        "timestamp": "2026-01-02T03:04:05.678Z", "error": None, **more,
    }  # fmt: skip
    return json.dumps(fields).encode()


def result(correlation_id: UUID | str, n: int = 0, **more: Any) -> tuple[str, bytes]:
    """A result record: its key and its value."""
    return str(correlation_id), event(correlation_id, n, **more)


class Background:
    """Runs a call in a thread; `outcome` waits for it and raises what it raised."""

    def __init__(self, call: Any, *args: Any, **kwargs: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call, args, kwargs), daemon=True)
        self._thread.start()

    def _run(self, call: Any, args: Any, kwargs: Any) -> None:
        try:
            self._value = call(*args, **kwargs)
        except BaseException as e:
            self._error = e

    def outcome(self, timeout: float = 60) -> Any:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"not done after {timeout} s"
        if self._error is not None:
            raise self._error
        return self._value


def eventually(condition: Any, timeout: float = 30) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout} s"
        time.sleep(0.01)
