"""Deferrable tasks at once, for a scheduler, workers and a triggerer in processes of their own.

They may be retried: on a busy machine Airflow's scheduler takes a task for failed
that is queued again before it has heard that the process which deferred it has
ended. A retry waits for the same trigger, and finds the result there.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from workflow_results.airflow import TriggerWorkflowOperator

with DAG("crowd", schedule=None, is_paused_upon_creation=False):
    TriggerWorkflowOperator.partial(
        task_id="ask",
        workflow_id="review",
        timeout=300,
        deferrable=True,
        defer_after=0,
        retries=2,
        retry_delay=timedelta(0),
    ).expand(payload=[{"do": "wait", "ask": n, "run": "{{ run_id }}"} for n in range(int(os.environ["CROWD"]))])
