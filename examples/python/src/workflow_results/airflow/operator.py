"""The operator: trigger a workflow, wait for its result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowException, BaseOperator, Context, conf

from workflow_results.airflow._compat import is_deferral_timeout
from workflow_results.airflow.attempt import Attempt, Ledger
from workflow_results.airflow.errors import WorkflowResultUnreadable, WorkflowTimedOut
from workflow_results.airflow.fetch import Reference, refer_to
from workflow_results.airflow.hook import PUBLISH_TIMEOUT, RESULTS_TOPIC, TIMEOUT, TRIGGERS_TOPIC, WorkflowResultHook
from workflow_results.airflow.killable import KillableWait
from workflow_results.airflow.round_trip import LOOK_BACK, Beginning, Request, conclude, ensure_triggered
from workflow_results.airflow.trigger import LAST_LOOK, WorkflowResultTrigger
from workflow_results.result import ResultStreamError, ResultTimeout, WorkflowResult

DEFER_AFTER = 10.0  # seconds
MAX_XCOM_BYTES = 65536
EVENT_KEY = "workflow_event"  # of the second XCom

GRACE = 60.0  # seconds after which a triggerer that says nothing is given up


class TriggerWorkflowOperator(KillableWait, BaseOperator):
    """Triggers a workflow and waits for its result, whose ``result`` becomes the task's XCom.

    - A second XCom, ``workflow_event``, has the event's other fields and its place in Kafka, after a failure too.
    - Status failure raises `WorkflowTaskFailed`, error `WorkflowTaskErrored`, no result in time `WorkflowTimedOut`.
    - A retry after a time-out or a crash waits for the same trigger; after a failure or error it triggers anew, and so
      does Clear. This takes Airflow 3.3 (its task state store). Before, a retry publishes the same event ID again,
      looks back for its result, and finds a failure again.
    - The whole wait is bounded by ``timeout`` and ``execution_timeout``, each try's anew.
    """

    template_fields: Sequence[str] = ("workflow_id", "workflow_run_id", "payload")
    template_fields_renderers = {"payload": "json"}  # noqa: RUF012 - the base class declares it without ClassVar
    ui_color = "#d9e8f5"

    def __init__(
        self,
        *,
        workflow_id: str,
        payload: Mapping[str, Any] | None = None,
        workflow_run_id: str | None = None,
        triggers_topic: str = TRIGGERS_TOPIC,
        results_topic: str = RESULTS_TOPIC,
        kafka_config_id: str = "kafka_default",
        timeout: float | timedelta = TIMEOUT,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float = DEFER_AFTER,
        publish_timeout: float = PUBLISH_TIMEOUT,
        look_back: timedelta = LOOK_BACK,
        max_xcom_bytes: int | None = MAX_XCOM_BYTES,
        **kwargs: Any,
    ) -> None:
        """Remember what to do.

        Args:
            workflow_id: which workflow; a template.
            payload: what it is given; templates in it are rendered.
            workflow_run_id: which run of it; a template. The event ID if left out.
            triggers_topic: where the trigger is published.
            results_topic: where the result is awaited.
            kafka_config_id: the Airflow connection, of type kafka.
            timeout: seconds, or a timedelta, to wait for the result.
            deferrable: leave the worker to others after ``defer_after``, and wait in the triggerer.
            defer_after: seconds to wait in the worker first; a result that comes soon is had sooner there.
            publish_timeout: seconds for the publication, and for reading the result after a deferral.
            look_back: where to begin where an earlier try's position is not known (Airflow before 3.3).
            max_xcom_bytes: of the result as JSON. One that is larger stays in Kafka, and the XCom is a
                reference for `WorkflowResultHook.fetch`. None: no limit. 0: always a reference.
            kwargs: of BaseOperator.
        """
        super().__init__(**kwargs)
        self.workflow_id = workflow_id
        self.payload = payload if payload is not None else {}
        self.workflow_run_id = workflow_run_id
        self.triggers_topic = triggers_topic
        self.results_topic = results_topic
        self.kafka_config_id = kafka_config_id
        self.timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        self.deferrable = deferrable
        self.defer_after = defer_after
        self.publish_timeout = publish_timeout
        self.look_back = look_back
        self.max_xcom_bytes = max_xcom_bytes

    @cached_property
    def hook(self) -> WorkflowResultHook:
        """The hook over the task's connection."""
        return WorkflowResultHook(
            self.kafka_config_id, triggers_topic=self.triggers_topic, results_topic=self.results_topic
        )

    def execute(self, context: Context) -> Any:
        """Trigger, wait, and return the result or a reference to it.

        Raises:
            WorkflowTaskError: one of its subclasses.
        """
        ends = datetime.now(UTC) + timedelta(seconds=self._limit())
        ledger = Ledger.of_task(context, "operator")
        request = Request(self.workflow_id, self.payload, self.workflow_run_id)
        attempt = ensure_triggered(self.hook, request, ledger, self.publish_timeout)
        beginning = Beginning.of(attempt, self.look_back)
        left = max((ends - datetime.now(UTC)).total_seconds(), 0.0)
        here = min(self.defer_after, left) if self.deferrable else left
        try:
            return self._finish(context, ledger, self._wait(attempt, beginning, here))
        except ResultTimeout as e:
            if here >= left:
                raise self._timed_out(str(e)) from e
        self._defer(attempt, beginning, ends)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after a deferral: read the result where the trigger found it."""
        if event["status"] == "timeout":
            raise self._timed_out(event["message"])
        if event["status"] == "unreadable":
            raise self._unreadable(event["message"])
        found = self.hook.fetch(event["reference"], self.publish_timeout)
        return self._finish(context, Ledger.of_task(context, "operator"), found)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; tell more than Airflow does of a triggerer that said nothing."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as e:
            if not is_deferral_timeout(e):
                raise
            raise self._timed_out(f"the triggerer told nothing until {GRACE:g} s after the end; does one run?") from e

    def _limit(self) -> float:
        """Fold execution_timeout in: Airflow 3 does not enforce it while a task is deferred."""
        if self.execution_timeout is None:
            return self.timeout
        return min(self.timeout, self.execution_timeout.total_seconds())

    def _wait(self, attempt: Attempt, beginning: Beginning, limit: float) -> WorkflowResult:
        self.log.info(
            "waiting for the result of %s in topic %s for %.1f s", attempt.event_id, self.results_topic, limit
        )
        with self._waiting_for(attempt.event_id):
            try:
                return self.hook.wait(attempt.event_id, self.workflow_id, limit, beginning.position, beginning.since)
            except ResultStreamError as e:
                raise self._unreadable(str(e)) from e

    def _defer(self, attempt: Attempt, beginning: Beginning, ends: datetime) -> NoReturn:
        trigger = WorkflowResultTrigger(
            attempt.event_id,
            ends,
            self.workflow_id,
            self.results_topic,
            self.kafka_config_id,
            dict(beginning.position) if beginning.position is not None else None,
            beginning.since,
        )
        left = max((ends - datetime.now(UTC)).total_seconds(), LAST_LOOK)
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=left + GRACE))

    def _finish(self, context: Context, ledger: Ledger, result: WorkflowResult) -> dict[str, Any] | Reference:
        if self.do_xcom_push:
            event = {name: value for name, value in result.items() if name != "result"}
            context["ti"].xcom_push(key=EVENT_KEY, value={**event, **refer_to(result)})
        conclude(result, ledger)
        size = len(json.dumps(result.result).encode())
        if self.max_xcom_bytes is None or size <= self.max_xcom_bytes:
            return result.result
        self.log.info("the result has %d bytes, more than max_xcom_bytes; the XCom is a reference to it", size)
        return refer_to(result)

    def _timed_out(self, why: str) -> WorkflowTimedOut:
        return WorkflowTimedOut(
            f"workflow {self.workflow_id} gave no result within {self._limit():g} s: {why}. "
            f"Look whether an agent reads topic {self.triggers_topic} and what became of the workflow; "
            "a retry waits for the same trigger again, Clear triggers it anew."
        )

    def _unreadable(self, why: str) -> WorkflowResultUnreadable:
        return WorkflowResultUnreadable(
            f"{why}. Look at connection {self.kafka_config_id} and its rights on topic {self.results_topic}; "
            "a retry waits for the same trigger again."
        )
