"""What answers the triggers of the Airflow tests: through a real sidecar, as the payload tells it."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from binary import sidecar_binary
from confluent_kafka import Consumer, TopicPartition
from kafka import Kafka, eventually

from workflow_results import SidecarClient

TRIGGERS = "workflow-triggers"
RESULTS = "workflow-results"


class Agent:
    """Takes each trigger once, by its ID; ``triggers`` has every record of the topic.

    The payload's ``do``: succeed, fail, break, large; ``fail first`` fails the
    first trigger of a ``run``; ``wait`` answers when `release` is called, and so
    does ``wait once`` with the first trigger of a ``run``.
    """

    current: Agent

    def __init__(self, kafka: Kafka) -> None:
        Agent.current = self
        self.triggers: list[dict[str, Any]] = []
        self.on_wait: Callable[[dict[str, Any]], Any] = lambda trigger: None  # called when one is held
        self._held: list[dict[str, Any]] = []
        self._runs: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        settings = {"bootstrap.servers": kafka.addr, "group.id": str(uuid4()), "log_level": 2}
        self._asking = Consumer(settings)
        self._consumer = Consumer(settings)
        self._consumer.assign([TopicPartition(TRIGGERS, 0, 0)])
        self._directory = tempfile.TemporaryDirectory(prefix="wr")
        self._start_sidecar(kafka)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def of(self, run: str) -> list[dict[str, Any]]:
        """Return the triggers whose payload names this run; all that were published are in the topic already."""
        _, end = self._asking.get_watermark_offsets(TopicPartition(TRIGGERS, 0), timeout=30)
        eventually(lambda: len(self.triggers) >= end)
        return [each for each in self.triggers if each["payload"].get("run") == run]

    def release(self) -> None:
        """Answer what is held."""
        with self._lock:
            held, self._held = self._held, []
        for trigger in held:
            self._answer(trigger, status="success", result={"answer": "late"})

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(30)
        self._consumer.close()
        self._asking.close()
        self._client.close()
        self._sidecar.terminate()
        assert self._sidecar.wait(30) == 0
        self._directory.cleanup()

    def _start_sidecar(self, kafka: Kafka) -> None:
        binary = sidecar_binary()
        directory = Path(self._directory.name)
        self._sidecar = subprocess.Popen(
            [
                "setpriv", "--pdeathsig", "KILL",  # the kernel ends it if this process dies without a word
                binary, "run", "--brokers", kafka.addr, "--topic", RESULTS, "--socket", str(directory / "s"),
                "--data-dir", str(directory / "data"), "--linger", "0s", "--shutdown-timeout", "5s",
            ]
        )  # fmt: skip
        self._client = SidecarClient(str(directory / "s"), deadline=60)
        self._client.status()  # waits for the socket

    def _run(self) -> None:
        while not self._stopping.is_set():
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            trigger = json.loads(message.value() or b"")
            known = any(trigger["event_id"] == each["event_id"] for each in self.triggers)
            self.triggers.append(trigger)
            if not known:
                self._take(trigger)

    def _take(self, trigger: dict[str, Any]) -> None:
        payload = trigger["payload"]
        do = payload["do"]
        self._runs[payload.get("run")] += 1
        if do == "fail first":
            do = "fail" if self._runs[payload["run"]] == 1 else "succeed"
        if do == "wait once":
            do = "wait" if self._runs[payload["run"]] == 1 else "succeed"
        if do == "wait":
            with self._lock:
                self._held.append(trigger)
            self.on_wait(trigger)
        elif do == "fail":
            self._answer(trigger, status="failure", result={"reason": "declined"}, error="declined by the reviewer")
        elif do == "break":
            self._answer(trigger, status="error", error="the model is away")
        elif do == "large":
            self._answer(trigger, status="success", result={"text": "x" * 100_000})
        else:
            self._answer(trigger, status="success", result={"answer": payload.get("ask")})

    def _answer(self, trigger: dict[str, Any], **outcome: Any) -> None:
        self._client.publish(
            correlation_id=trigger["event_id"], workflow_id=trigger["workflow_id"],
            workflow_run_id=trigger["workflow_run_id"], **outcome,
        )  # fmt: skip
