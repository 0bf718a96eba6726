"""The sensor: waits for the result of a trigger that was published elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    conf,
)

from workflow_results.airflow._compat import first_reschedule, is_deferral_timeout
from workflow_results.airflow.errors import WorkflowResultUnreadable, WorkflowTaskFailed, raise_for_status
from workflow_results.airflow.hook import PUBLISH_TIMEOUT, RESULTS_TOPIC, WorkflowResultHook
from workflow_results.airflow.killable import KillableWait
from workflow_results.airflow.operator import DEFER_AFTER, GRACE
from workflow_results.airflow.round_trip import LOOK_BACK
from workflow_results.airflow.trigger import LAST_LOOK, WorkflowResultTrigger
from workflow_results.position import Position
from workflow_results.result import ResultStreamError, ResultTimeout, WorkflowResult

LOOK = 10.0  # seconds of one look in reschedule mode


class WorkflowResultSensor(KillableWait, BaseSensorOperator):
    """Waits for the result of a correlation ID; its ``result`` becomes the XCom.

    - ``mode="poke"``: one wait in the worker, woken by the result; ``poke_interval`` has no effect.
    - ``mode="reschedule"``: a look of at most 10 s every ``poke_interval``.
    - ``deferrable=True``: after ``defer_after`` seconds, a wait in the triggerer.

    A failure or error of the workflow fails the task without a retry, which would
    find it again; ``soft_fail`` skips the task instead.
    """

    template_fields: Sequence[str] = ("correlation_id", "workflow_id", "position")
    ui_color = "#e6f1f2"

    def __init__(
        self,
        *,
        correlation_id: str,
        workflow_id: str | None = None,
        position: Position | None = None,
        look_back: timedelta = LOOK_BACK,
        results_topic: str = RESULTS_TOPIC,
        kafka_config_id: str = "kafka_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float = DEFER_AFTER,
        **kwargs: Any,
    ) -> None:
        """Remember what to wait for.

        Args:
            correlation_id: the event ID of the trigger; a template.
            workflow_id: a result of another workflow is not taken; a template.
            position: what `WorkflowResultHook.mark` returned before the trigger was published, for
                instance the output of another task.
            look_back: without a position: how long before this sensor's first start to begin.
            results_topic: where results are.
            kafka_config_id: the Airflow connection, of type kafka.
            deferrable: wait in the triggerer; ``mode`` has no effect then.
            defer_after: seconds to wait in the worker first.
            kwargs: of BaseSensorOperator: ``timeout`` (seconds), ``mode``, ``soft_fail`` and so on.
        """
        super().__init__(**kwargs)
        self.correlation_id = correlation_id
        self.workflow_id = workflow_id
        self.position = position
        self.look_back = look_back
        self.results_topic = results_topic
        self.kafka_config_id = kafka_config_id
        self.deferrable = deferrable
        self.defer_after = defer_after

    @cached_property
    def hook(self) -> WorkflowResultHook:
        """The hook over the sensor's connection."""
        return WorkflowResultHook(self.kafka_config_id, results_topic=self.results_topic)

    def execute(self, context: Context) -> Any:
        """Wait as the mode has it.

        Raises:
            AirflowSensorTimeout: no result came in time.
            AirflowFailException: the workflow failed or broke.
        """
        if not self.deferrable:
            return super().execute(context)
        ends = datetime.now(UTC) + timedelta(seconds=self._limit())
        since = self._since(context)
        here = min(self.defer_after, self._limit())
        try:
            return self._finish(self._wait(here, since))
        except ResultTimeout as e:
            if here >= self._limit():
                return self._give_up(str(e))
        trigger = WorkflowResultTrigger(
            self.correlation_id, ends, self.workflow_id, self.results_topic, self.kafka_config_id, self.position, since
        )
        left = max((ends - datetime.now(UTC)).total_seconds(), LAST_LOOK)
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=left + GRACE))

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Wait for the result: all of the time in mode poke, a moment in mode reschedule."""
        limit = min(LOOK, self._limit()) if self.reschedule else self._limit()
        try:
            return PokeReturnValue(True, self._finish(self._wait(limit, self._since(context))))
        except ResultTimeout as e:
            if not self.reschedule:
                raise AirflowSensorTimeout(self._told(str(e))) from e
            self.log.info("%s", e)
            return False

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after a deferral: read the result where the trigger found it."""
        if event["status"] == "timeout":
            return self._give_up(event["message"])
        if event["status"] == "unreadable":
            raise self._unreadable(event["message"])
        return self._finish(self.hook.fetch(event["reference"], PUBLISH_TIMEOUT))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; tell more than Airflow does of a triggerer that said nothing."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as e:
            if not is_deferral_timeout(e):
                raise
            self._give_up(f"the triggerer told nothing until {GRACE:g} s after the end; does one run?")

    def _limit(self) -> float:
        """Fold execution_timeout in: Airflow 3 does not enforce it while a task is deferred."""
        if self.execution_timeout is None or not self.deferrable:
            return float(self.timeout)
        return min(float(self.timeout), self.execution_timeout.total_seconds())

    def _since(self, context: Context) -> datetime | None:
        """Begin before the first start: a window that moved on with each look would lose the result."""
        if self.position is not None:
            return None
        ti = context["ti"]
        first = first_reschedule(ti, context) if self.reschedule else None
        # Airflow 2's dag.test sets no start.
        return (first or ti.start_date or datetime.now(UTC)) - self.look_back

    def _wait(self, limit: float, since: datetime | None) -> WorkflowResult:
        with self._waiting_for(self.correlation_id):
            try:
                return self.hook.wait(self.correlation_id, self.workflow_id, limit, self.position, since)
            except ResultStreamError as e:
                raise self._unreadable(str(e)) from e

    def _finish(self, found: WorkflowResult) -> dict[str, Any]:
        try:
            return raise_for_status(found).result
        except WorkflowTaskFailed as e:
            raise AirflowFailException(str(e)) from e

    def _give_up(self, why: str) -> NoReturn:
        """Time out as a sensor does that is not deferred."""
        if self.soft_fail or self.never_fail:
            raise AirflowSkipException(self._told(why))
        raise AirflowSensorTimeout(self._told(why))

    def _told(self, why: str) -> str:
        return f"{why}. Look whether its trigger was published, and what became of its workflow."

    def _unreadable(self, why: str) -> WorkflowResultUnreadable:
        return WorkflowResultUnreadable(
            f"{why}. Look at connection {self.kafka_config_id} and its rights on topic {self.results_topic}."
        )
