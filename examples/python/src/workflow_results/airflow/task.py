"""For the code of a task: trigger a workflow and wait for its result in one call."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from workflow_results.airflow._compat import current_context
from workflow_results.airflow.attempt import Ledger
from workflow_results.airflow.errors import WorkflowResultUnreadable, WorkflowTimedOut
from workflow_results.airflow.hook import PUBLISH_TIMEOUT, RESULTS_TOPIC, TIMEOUT, TRIGGERS_TOPIC, WorkflowResultHook
from workflow_results.airflow.killable import killable_wait
from workflow_results.airflow.round_trip import LOOK_BACK, Beginning, Request, conclude, ensure_triggered
from workflow_results.result import ResultStreamError, ResultTimeout, WorkflowResult


def trigger_and_wait(
    workflow_id: str,
    payload: Mapping[str, Any] | None = None,
    workflow_run_id: str | None = None,
    *,
    triggers_topic: str = TRIGGERS_TOPIC,
    results_topic: str = RESULTS_TOPIC,
    kafka_config_id: str = "kafka_default",
    timeout: float | timedelta = TIMEOUT,
    publish_timeout: float = PUBLISH_TIMEOUT,
    look_back: timedelta = LOOK_BACK,
) -> WorkflowResult:
    """Trigger a workflow and wait for its result in the worker.

    In a task, a retry that asks the same of the same workflow waits for the
    trigger that was published before; after a failure or error it triggers
    anew, and so does Clear. To ask the same several times in one task is to
    trigger as many times. Anywhere else each call triggers anew.

    Args:
        workflow_id: which workflow.
        payload: what it is given.
        workflow_run_id: which run of it; the event ID if left out.
        triggers_topic: where the trigger is published.
        results_topic: where the result is awaited.
        kafka_config_id: the Airflow connection, of type kafka.
        timeout: seconds, or a timedelta, to wait for the result.
        publish_timeout: seconds for the publication.
        look_back: where to begin where an earlier try's position is not known (Airflow before 3.3).

    Returns:
        The result of a success.

    Raises:
        WorkflowTaskFailed, WorkflowTaskErrored: the workflow ended so.
        WorkflowTimedOut: no result came in time.
        WorkflowNotTriggered: Kafka did not confirm the trigger.
        WorkflowResultUnreadable: the results topic cannot be read.
        WorkflowWaitKilled: the task was told to end; the workflow goes on, and a retry waits for it.
    """
    hook = WorkflowResultHook(kafka_config_id, triggers_topic=triggers_topic, results_topic=results_topic)
    request = Request(workflow_id, payload if payload is not None else {}, workflow_run_id)
    limit = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    ledger = _ledger(request)
    attempt = ensure_triggered(hook, request, ledger, publish_timeout)
    beginning = Beginning.of(attempt, look_back)
    try:
        with killable_wait(attempt.event_id):
            found = hook.wait(attempt.event_id, workflow_id, limit, beginning.position, beginning.since)
    except ResultTimeout as e:
        raise WorkflowTimedOut(
            f"workflow {workflow_id} gave no result within {limit:g} s: {e}. "
            f"Look whether an agent reads topic {triggers_topic} and what became of the workflow."
        ) from e
    except ResultStreamError as e:
        raise WorkflowResultUnreadable(f"{e}. Look at connection {kafka_config_id} and its rights.") from e
    return conclude(found, ledger)


def _ledger(request: Request) -> Ledger:
    context = current_context()
    if context is None:
        return Ledger.of_nobody()
    asked = json.dumps([request.workflow_id, request.workflow_run_id, request.payload], sort_keys=True, default=repr)
    digest = hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    ti = context["ti"]
    this_try = (ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number, ti.start_date)
    return Ledger.of_task(context, f"{digest}.{_calls.count(this_try, digest)}")


class _Calls:
    """Counts equal requests of the try that runs, so that each has a ledger of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: Any = None
        self._seen: dict[str, int] = {}

    def count(self, of: Any, digest: str) -> int:
        with self._lock:
            if of != self._of:
                self._of, self._seen = of, {}
            self._seen[digest] = self._seen.get(digest, 0) + 1
            return self._seen[digest]


_calls = _Calls()
