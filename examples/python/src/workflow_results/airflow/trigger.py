"""The trigger: waits in the triggerer, beside any number of others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from workflow_results.airflow.fetch import refer_to
from workflow_results.airflow.hook import RESULTS_TOPIC, WorkflowResultHook
from workflow_results.position import Position
from workflow_results.result import ResultStreamError, ResultTimeout

LAST_LOOK = 5.0  # seconds, the least that is looked: the result may have come while no triggerer ran

# Seconds from its start in which the trigger keeps its event back. Airflow's scheduler takes a task for failed that is
# queued again before the scheduler has heard that the process which deferred it has ended.
SETTLE = 2.0


class WorkflowResultTrigger(BaseTrigger):
    """Waits for a result and yields one event that says where it stands, not what it is.

    The event's payload has ``correlation_id``, ``status``, and

    - ``found``: ``reference``, for `WorkflowResultHook.fetch`;
    - ``timeout`` or ``unreadable``: ``message``.

    All triggers of a triggerer share one consumer per topic. One that is
    cancelled is deregistered at once, and one that is moved to another
    triggerer begins again at the same position, with the same end.
    """

    def __init__(
        self,
        correlation_id: str,
        end_time: datetime,
        workflow_id: str | None = None,
        results_topic: str = RESULTS_TOPIC,
        kafka_config_id: str = "kafka_default",
        position: Position | None = None,
        since: datetime | None = None,
    ) -> None:
        """Remember what to wait for.

        Args:
            correlation_id: the event ID of the trigger.
            end_time: when to give up, an aware datetime; but not before 5 s have passed.
            workflow_id: a result of another workflow is not taken.
            results_topic: where results are.
            kafka_config_id: the Airflow connection.
            position: where the topic ended before the trigger was published.
            since: instead of a position: when the trigger was published or earlier.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.correlation_id = correlation_id
        self.end_time = end_time
        self.workflow_id = workflow_id
        self.results_topic = results_topic
        self.kafka_config_id = kafka_config_id
        self.position = position
        self.since = since

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments."""
        return (
            "workflow_results.airflow.trigger.WorkflowResultTrigger",
            {
                "correlation_id": self.correlation_id,
                "end_time": self.end_time,
                "workflow_id": self.workflow_id,
                "results_topic": self.results_topic,
                "kafka_config_id": self.kafka_config_id,
                "position": self.position,
                "since": self.since,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the one event."""
        began = time.monotonic()
        payload = {"correlation_id": self.correlation_id, **await self._outcome()}
        await asyncio.sleep(max(began + SETTLE - time.monotonic(), 0.0))
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]

    async def _outcome(self) -> dict[str, Any]:
        hook = WorkflowResultHook(self.kafka_config_id, results_topic=self.results_topic)
        left = (self.end_time - datetime.now(UTC)).total_seconds()
        try:
            found = await hook.await_result(
                self.correlation_id, self.workflow_id, max(left, LAST_LOOK), self.position, self.since
            )
        except ResultTimeout as e:
            return {"status": "timeout", "message": str(e)}
        except ResultStreamError as e:
            return {"status": "unreadable", "message": str(e)}
        return {"status": "found", "reference": refer_to(found)}
