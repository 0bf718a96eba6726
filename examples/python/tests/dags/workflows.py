"""The DAGs of the tests. What the agent is to do comes with the run's configuration, through templates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, get_current_context, task
from airflow_agent import Agent
from airflow_world import failed

from workflow_results.airflow import (
    TriggerWorkflowOperator,
    WorkflowResultHook,
    WorkflowResultSensor,
    trigger_and_wait,
)

PAYLOAD = {"do": "{{ dag_run.conf['do'] }}", "ask": "of {{ dag.dag_id }}", "run": "{{ run_id }}"}
AT_ONCE = {"retries": 1, "retry_delay": timedelta(0)}


def retried(context: Any) -> None:
    failed(context)
    Agent.current.release()


def started(context: Any) -> None:
    """Note the start as a worker does: Airflow 2's dag.test leaves it out."""
    context["ti"].start_date = context["ti"].start_date or datetime.now(UTC)


CALLBACKS = {"on_failure_callback": failed, "on_retry_callback": retried}


with DAG("worker", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator(
        task_id="ask", workflow_id="{{ dag_run.conf['workflow'] }}", workflow_run_id="run of {{ ti.task_id }}",
        payload=PAYLOAD, timeout=60, deferrable=False,
    )  # fmt: skip

with DAG("deferred", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator(
        task_id="ask", workflow_id="review", payload=PAYLOAD, timeout=60, deferrable=True, defer_after=0
    )

with DAG("impatient", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator(task_id="ask", workflow_id="review", payload=PAYLOAD, timeout=1, deferrable=False)

with DAG("impatient_deferred", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator(
        task_id="ask", workflow_id="review", payload=PAYLOAD, timeout=60, execution_timeout=timedelta(seconds=2),
        deferrable=True, defer_after=0.5, on_execute_callback=started,
    )  # fmt: skip

with DAG("retried", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator(
        task_id="ask", workflow_id="review", payload=PAYLOAD, timeout=2, deferrable=False, **AT_ONCE
    )  # fmt: skip

with DAG("retried_deferred", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator(
        task_id="ask", workflow_id="review", payload=PAYLOAD, timeout=60, deferrable=True, defer_after=0, **AT_ONCE
    )

with DAG("mapped", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator.partial(task_id="ask", workflow_id="review", timeout=60, deferrable=False).expand(
        payload=[{"do": "succeed", "ask": n, "run": "{{ run_id }}"} for n in range(3)]
    )

with DAG("large", schedule=None, default_args=CALLBACKS):
    asked = TriggerWorkflowOperator(task_id="ask", workflow_id="review", payload=PAYLOAD, timeout=60, deferrable=False)

    @task
    def read(reference: dict[str, Any]) -> int:
        return len(WorkflowResultHook().fetch(reference).result["text"])

    read(asked.output)

with DAG("broker_down", schedule=None, default_args=CALLBACKS):
    TriggerWorkflowOperator(
        task_id="ask", workflow_id="review", payload=PAYLOAD, kafka_config_id="kafka_down", publish_timeout=1
    )

with DAG("function", schedule=None, default_args=CALLBACKS):

    @task(retries=1, retry_delay=timedelta(0))
    def twice() -> list[Any]:
        context = get_current_context()
        payload = {"do": context["dag_run"].conf["do"], "ask": "equal", "run": context["run_id"]}
        return [trigger_and_wait("review", payload, timeout=2).result["answer"] for _ in range(2)]

    twice()


with DAG("function_once", schedule=None, default_args=CALLBACKS):

    @task
    def once() -> Any:
        context = get_current_context()
        payload = {"do": context["dag_run"].conf["do"], "run": context["run_id"]}
        return trigger_and_wait("review", payload, timeout=60).result["answer"]

    once()


def sensor_dag(dag_id: str, **mode: Any) -> None:
    """A task triggers and hands over the ID and the position; the result may be there before the sensor starts."""
    with DAG(dag_id, schedule=None, default_args=CALLBACKS):

        @task
        def trigger() -> str:
            context = get_current_context()
            payload = {"do": context["dag_run"].conf["do"], "ask": 7, "run": context["run_id"]}
            return str(WorkflowResultHook().publish("review", "r", payload).event_id)

        WorkflowResultSensor(task_id="await", correlation_id=trigger(), workflow_id="review", **mode)


sensor_dag("sensor_poke", mode="poke", timeout=60, deferrable=False)
sensor_dag("sensor_reschedule", mode="reschedule", timeout=60, poke_interval=0.1, deferrable=False)
sensor_dag("sensor_deferred", deferrable=True, defer_after=0, timeout=60)
sensor_dag("sensor_impatient", timeout=0.5, deferrable=False)
sensor_dag("sensor_soft", timeout=60, soft_fail=True, deferrable=False)
sensor_dag("sensor_soft_deferred", timeout=2, soft_fail=True, deferrable=True, defer_after=0)
