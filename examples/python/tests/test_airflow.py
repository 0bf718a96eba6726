"""Real task instances of a real Airflow, in this process: `dag.test` runs tasks, and triggers inline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import airflow_home
import pytest
from airflow_agent import RESULTS, TRIGGERS, Agent
from kafka import Kafka, kafka_fixture

FIXTURES = (kafka_fixture,)


@pytest.fixture(scope="module", name="agent")
def agent_fixture(kafka: Kafka) -> Iterator[Agent]:
    kafka.create_topic(TRIGGERS)
    kafka.create_topic(RESULTS, 3)
    airflow_home.connect("kafka_default", kafka.addr)
    airflow_home.connect("kafka_down", "127.0.0.1:1")
    made = Agent(kafka)
    yield made
    made.close()


@pytest.fixture(scope="module", name="dags")
def dags_fixture(agent: Agent) -> Any:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils.db import initdb

    initdb()
    bag = DagBag(airflow_home.DAGS)
    assert not bag.import_errors
    return bag.dags


class Run:
    """A finished run of a DAG."""

    def __init__(self, dag: Any, **conf: Any) -> None:
        self._dag = dag
        self._run = dag.test(run_conf=conf)
        self.id = self._run.run_id

    @property
    def state(self) -> str:
        return str(self._run.state)

    def tasks(self) -> dict[tuple[str, int], Any]:
        return {(ti.task_id, ti.map_index): ti for ti in self._run.get_task_instances()}

    def xcom(self, task_id: str = "ask", map_index: int = -1, key: str = "return_value") -> Any:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            found = XComModel.get_many(
                run_id=self.id, key=key, task_ids=task_id, dag_ids=self._dag.dag_id, map_indexes=map_index
            )
            row = session.execute(found).first() if found is not None else None
        return None if row is None else XComModel.deserialize_value(row[0])


def test_success(agent: Agent, dags: Any) -> None:
    run = Run(dags["worker"], do="succeed", workflow="review")
    assert run.state == "success"
    assert run.xcom() == {"answer": "of worker"}
    (trigger,) = agent.of(run.id)
    event = run.xcom(key="workflow_event")
    assert (trigger["workflow_id"], trigger["workflow_run_id"]) == ("review", "run of ask")
    assert (event["correlation_id"], event["status"], event["topic"]) == (trigger["event_id"], "success", RESULTS)
