"""The way from a trigger to its result, as the operator and `trigger_and_wait` go it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from workflow_results.airflow.attempt import Attempt, Ledger
from workflow_results.airflow.errors import WorkflowNotTriggered, WorkflowTaskFailed, raise_for_status
from workflow_results.airflow.hook import WorkflowResultHook
from workflow_results.result import ResultStreamError, TriggerNotDelivered, WorkflowResult

LOOK_BACK = timedelta(hours=1)

_log = logging.getLogger("workflow_results.airflow")


@dataclass(frozen=True)
class Request:
    """What is asked of the workflow. ``workflow_run_id`` None: the event ID, so each trigger is a run of its own."""

    workflow_id: str
    payload: Mapping[str, Any]
    workflow_run_id: str | None = None


@dataclass(frozen=True)
class Beginning:
    """From where the results are read: a position, or a time if that is not known."""

    position: Mapping[str, Any] | None
    since: datetime | None

    @classmethod
    def of(cls, attempt: Attempt, look_back: timedelta) -> Beginning:
        """Return where to begin for this attempt."""
        return cls(attempt.position, None if attempt.position is not None else datetime.now(UTC) - look_back)


def ensure_triggered(hook: WorkflowResultHook, request: Request, ledger: Ledger, publish_timeout: float) -> Attempt:
    """Return the attempt to wait for; its trigger is published unless an earlier try has done so.

    Raises:
        WorkflowNotTriggered: Kafka did not confirm it, or a field is wrong.
    """
    attempt = ledger.open()
    try:
        if attempt is None:
            # The end is taken before the trigger is sent: no result of it can lie before.
            attempt = ledger.begin(hook.mark(publish_timeout))
        if attempt.published:
            _log.info("workflow %s was triggered by an earlier try: %s", request.workflow_id, attempt.event_id)
            return attempt
        run_id = request.workflow_run_id or attempt.event_id
        hook.publish(request.workflow_id, run_id, request.payload, attempt.event_id, publish_timeout)
    except (TriggerNotDelivered, ResultStreamError) as e:
        remedy = "A retry publishes it again, with the same ID. If that fails alike, look at topic and connection."
        raise _not_triggered(hook, request, str(e), remedy) from e
    except (ValueError, TypeError) as e:
        raise _not_triggered(hook, request, str(e), "Correct the task's arguments or the connection.") from e
    _log.info("triggered workflow %s, run %s: correlation ID %s", request.workflow_id, run_id, attempt.event_id)
    return ledger.published(attempt)


def conclude(result: WorkflowResult, ledger: Ledger) -> WorkflowResult:
    """Return the result of a success; note a failure or error, so that a retry triggers anew.

    Raises:
        WorkflowTaskFailed, WorkflowTaskErrored: by its status.
    """
    try:
        return raise_for_status(result)
    except WorkflowTaskFailed:
        ledger.consumed(result.correlation_id)
        raise


def _not_triggered(hook: WorkflowResultHook, request: Request, why: str, remedy: str) -> WorkflowNotTriggered:
    return WorkflowNotTriggered(
        f"workflow {request.workflow_id} was not triggered through topic {hook.triggers_topic} "
        f"of connection {hook.kafka_config_id}: {why} {remedy}"
    )
