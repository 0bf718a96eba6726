"""Real task instances of a real Airflow, in this process. To be imported before anything of Airflow is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import airflow_home
import airflow_versions
import pytest

from workflow_results import hub

errors: list[BaseException] = []  # what tasks failed with


def failed(context: Any) -> None:
    """The callback of the DAGs for a failure, or a retry."""
    errors.append(context["exception"])


@pytest.fixture(scope="session", name="dags")
def dags_fixture() -> Any:
    return airflow_versions.load_dags(airflow_home.DAGS)


class Run:
    """A finished run of a DAG: `dag.test` runs its tasks, and triggers inline."""

    def __init__(self, dag: Any, **conf: Any) -> None:
        self._dag = dag
        self._run = dag.test(run_conf=conf)
        self.id = self._run.run_id

    @property
    def state(self) -> str:
        return str(self._run.state)

    def clear(self, task_id: str = "ask") -> None:
        """Clear a task and run it again, as a scheduler would."""
        airflow_versions.run_cleared(self._dag, self._run, task_id)

    def resume_unanswered(self, task_id: str) -> None:
        """Let the scheduler give up a task's trigger, and resume the task as it has it."""
        airflow_versions.resume_unanswered(self._dag, self._run, task_id)

    def tasks(self) -> dict[tuple[str, int], Any]:
        return {(ti.task_id, ti.map_index): ti for ti in self._run.get_task_instances()}

    def xcom(self, task_id: str = "ask", map_index: int = -1, key: str = "return_value") -> Any:
        return airflow_versions.xcom(self._dag.dag_id, self.id, task_id, map_index, key)


class Store(dict[str, Any]):
    """A task state store whose values go through JSON."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


def context(store: Store | None, try_number: int = 1, retries: int = 2, max_tries: int = 2, map_index: int = -1) -> Any:
    """What the package uses of a task's context."""
    task = SimpleNamespace(retries=retries)
    ti = SimpleNamespace(
        dag_id="d", run_id="r", task_id="t", map_index=map_index, try_number=try_number, max_tries=max_tries, task=task
    )
    run = SimpleNamespace(start_date=datetime(2026, 1, 2, tzinfo=UTC))
    return {"ti": ti, "dag_run": run, **({} if store is None else {"task_state_store": store})}


def over_the_database(trigger: Any) -> Any:
    """Serialise a trigger and make it anew, as on the way to a triggerer."""
    path, arguments = trigger.serialize()
    assert path == f"{type(trigger).__module__}.{type(trigger).__name__}"
    return type(trigger)(**airflow_versions.over_the_database(arguments))


def hubs(topic: str) -> list[hub.Hub]:
    """Return this process's hubs of a topic."""
    return [each for each in list(hub._hubs.values()) if each._topic == topic]


def waiting(topic: str) -> list[str]:
    """Return the correlation IDs that this process waits for."""
    return [key.decode() for each in hubs(topic) for key in list(each._waiting)]
