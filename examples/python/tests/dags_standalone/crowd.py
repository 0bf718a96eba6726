"""Twelve deferrable tasks at once, for a scheduler, workers and a triggerer of their own processes."""

from __future__ import annotations

from airflow.sdk import DAG

from workflow_results.airflow import TriggerWorkflowOperator

with DAG("crowd", schedule=None, is_paused_upon_creation=False):
    TriggerWorkflowOperator.partial(
        task_id="ask", workflow_id="review", timeout=300, deferrable=True, defer_after=0
    ).expand(payload=[{"do": "wait", "ask": n, "run": "{{ run_id }}"} for n in range(12)])
