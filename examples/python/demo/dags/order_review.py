"""Two DAGs that have orders reviewed by a LangGraph workflow, and use what it says."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from workflow_results.airflow import TriggerWorkflowOperator


def tell(what: str) -> Any:
    """Make a callback that tells a person how a task moves."""

    def print_it(context: Any) -> None:
        ti = context["ti"]
        name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"
        error = f": {context['exception']}" if context.get("exception") else ""
        print(f"   {context['dag'].dag_id}.{name} {what}{error}", flush=True)

    return print_it


TOLD = {
    "on_execute_callback": tell("runs"),
    "on_success_callback": tell("is done"),
    "on_failure_callback": tell("has failed"),
}

with DAG("order_review", schedule=None, default_args=TOLD):
    review = TriggerWorkflowOperator.partial(
        task_id="review", workflow_id="order-review", timeout=120, deferrable=True, defer_after=5
    ).expand(payload=[{"order_id": "A-1"}, {"order_id": "B-2"}])

    @task
    def ship(reviews: Any) -> dict[str, str]:
        """Use the results: they are the XComs of the tasks that asked."""
        return {each["order_id"]: each["decision"] for each in reviews}

    ship(review.output)

with DAG("broken_review", schedule=None, default_args=TOLD):
    TriggerWorkflowOperator(task_id="review", workflow_id="order-review", payload={"order_id": "C-3"}, timeout=120)
