"""A whole Airflow: scheduler, workers, triggerer and server as processes (`pytest -m standalone`)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import airflow_home
import airflow_versions
import pytest
from airflow_agent import RESULTS, TRIGGERS, Agent
from kafka import eventually, own_kafka_fixture

pytestmark = pytest.mark.standalone

FIXTURES = (own_kafka_fixture,)
TESTS = Path(__file__).parent
TIMEOUT = 180.0  # seconds, on a slow, busy machine
# Airflow 2 runs one task at a time over SQLite, and starts a Python of some seconds for each.
CROWD = 12 if airflow_versions.AIRFLOW_3 else 3


class Airflow:
    """`airflow standalone`, with a database and ports of its own."""

    def __init__(self, home: Path, brokers: str) -> None:
        self._home = home
        airflow_home.connect("kafka_default", brokers)
        api, worker, triggerer, health = _free_ports(4)
        python_path = os.pathsep.join([str(TESTS), *sys.path])
        self._env = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # it calls `airflow`
            "PYTHONPATH": python_path,
            "AIRFLOW_HOME": str(home),
            "CROWD": str(CROWD),
            "AIRFLOW__CORE__DAGS_FOLDER": str(TESTS / "dags_standalone"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{api}/execution/",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(api),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(api),
            "AIRFLOW__WEBSERVER__WORKERS": "1",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(triggerer),
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(health),
        }
        self._log = (home / "standalone.log").open("wb")
        # A session of its own: all of its processes are ended by their group.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            env=self._env, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(lambda: self._rows("SELECT 1 FROM serialized_dag WHERE dag_id = 'crowd'"), TIMEOUT)

    def run(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "airflow", *arguments], env=self._env, check=True, timeout=TIMEOUT,
            stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def states(self) -> list[str | None]:
        return [row[0] for row in self._rows("SELECT state FROM task_instance WHERE dag_id = 'crowd'")]

    def run_id(self) -> str:
        ((found,),) = self._rows("SELECT run_id FROM dag_run WHERE dag_id = 'crowd'")
        return str(found)

    def until(self, state: str) -> None:
        """Wait until all tasks are in a state."""
        try:
            eventually(lambda: self.states() == [state] * CROWD, TIMEOUT)
        except AssertionError as e:
            log = (self._home / "standalone.log").read_text(errors="replace")
            raise AssertionError(f"not all are {state}: {self.states()}\n{log[-8000:]}") from e

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._log.close()

    def _rows(self, query: str) -> list[Any]:
        """Ask the database; a table that is not there yet has no rows."""
        try:
            with sqlite3.connect(f"file:{self._home}/airflow.db?mode=ro", uri=True, timeout=30) as database:
                return database.execute(query).fetchall()
        except sqlite3.OperationalError as e:
            if "no such table" in str(e) or "unable to open" in str(e):
                return []
            raise


@pytest.fixture(name="agent")
def agent_fixture(own_kafka: Any) -> Iterator[Agent]:
    own_kafka.create_topic(TRIGGERS)
    own_kafka.create_topic(RESULTS, 3)
    made = Agent(own_kafka)
    yield made
    made.close()


@pytest.fixture(name="airflow")
def airflow_fixture(own_kafka: Any, agent: Agent, tmp_path: Path) -> Iterator[Airflow]:
    made = Airflow(tmp_path, own_kafka.addr)
    yield made
    made.close()


def test_many_deferred_tasks_and_a_clear(agent: Agent, airflow: Airflow) -> None:
    airflow.run("dags", "trigger", "crowd")
    airflow.until("deferred")
    run = airflow.run_id()
    assert len(agent.of(run)) == CROWD
    agent.release()
    airflow.until("success")
    first = {each["event_id"] for each in agent.of(run)}
    assert len(first) == len(agent.of(run)) == CROWD

    airflow.run("tasks", "clear", "--yes", "crowd")
    airflow.until("deferred")
    agent.release()
    airflow.until("success")
    assert len({each["event_id"] for each in agent.of(run)}) == len(agent.of(run)) == 2 * CROWD


def _free_ports(n: int) -> list[int]:
    held = [socket.socket() for _ in range(n)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
