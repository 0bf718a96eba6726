"""The DAGs of test_loop.py, one of each kind for both ways of waiting. What the graph is to do comes with the run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG
from airflow_world import failed

from workflow_results.airflow import TriggerWorkflowOperator

WAYS: dict[str, dict[str, Any]] = {
    "poll": {"deferrable": False},
    "deferred": {"deferrable": True, "defer_after": 0},
}
KINDS: dict[str, dict[str, Any]] = {
    "patient": {"timeout": 120},
    "impatient": {"timeout": 1},
    "retried": {"timeout": 3, "retries": 20, "retry_delay": timedelta(0)},
}

for way, waits in WAYS.items():
    for kind, limits in KINDS.items():
        with DAG(
            f"loop_{kind}_{way}", schedule=None, render_template_as_native_obj=True,
            default_args={"on_failure_callback": failed, "on_retry_callback": failed},
        ):  # fmt: skip
            TriggerWorkflowOperator(
                task_id="ask", workflow_id="order-review", workflow_run_id="{{ run_id }}",
                payload={name: f"{{{{ dag_run.conf.get('{name}') }}}}" for name in ("do", "n", "gate")},
                **waits, **limits,
            )  # fmt: skip
