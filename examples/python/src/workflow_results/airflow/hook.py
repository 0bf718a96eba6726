"""The hook: producer and pollers from an Airflow connection of type kafka."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook
from asgiref.sync import sync_to_async

from workflow_results.airflow.fetch import fetch
from workflow_results.events import EventType, WorkflowEvent
from workflow_results.poller import AsyncWorkflowResultPoller, WorkflowResultPoller
from workflow_results.position import Position
from workflow_results.producer import WorkflowEventProducer
from workflow_results.result import WorkflowResult

TRIGGERS_TOPIC = "workflow-triggers"
RESULTS_TOPIC = "workflow-results"
TIMEOUT = 300.0  # seconds
PUBLISH_TIMEOUT = 30.0  # seconds


class WorkflowResultHook(KafkaBaseHook):
    """Publishes triggers and waits for results over a connection of type ``kafka``.

    The connection's extra is the configuration of confluent-kafka: at least
    ``bootstrap.servers``. All waits of a process over equal connections share
    one consumer, however many hooks there are.
    """

    hook_name = "Workflow results"

    def __init__(
        self,
        kafka_config_id: str = "kafka_default",
        *,
        triggers_topic: str = TRIGGERS_TOPIC,
        results_topic: str = RESULTS_TOPIC,
    ) -> None:
        """Remember which connection; it is looked up when it is first needed.

        Args:
            kafka_config_id: the Airflow connection.
            triggers_topic: where triggers are published.
            results_topic: where results are awaited.
        """
        super().__init__(kafka_config_id=kafka_config_id)  # type: ignore[no-untyped-call]
        self.triggers_topic = triggers_topic
        self.results_topic = results_topic

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of confluent-kafka.

        Raises:
            AirflowNotFoundException: there is no such connection.
            ValueError: its extra has no ``bootstrap.servers``.
        """
        return _shared(self._build_config())

    def mark(self, timeout: float = PUBLISH_TIMEOUT) -> Position:
        """Return where the results topic ends now; take it before the trigger is published.

        Args:
            timeout: seconds in which brokers that are away are asked again.

        Raises:
            ResultStreamError: they did not answer, or cannot be asked with this configuration.
        """
        return WorkflowResultPoller(self.config, self.results_topic).mark(timeout)

    def publish(
        self,
        workflow_id: str,
        workflow_run_id: str,
        payload: Mapping[str, Any],
        event_id: str | UUID | None = None,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> WorkflowEvent:
        """Publish a trigger; returns when Kafka has it.

        Args:
            workflow_id: which workflow.
            workflow_run_id: which run of it.
            payload: what the workflow is given.
            event_id: the correlation ID of the result; a new one if left out.
            timeout: seconds.

        Raises:
            TriggerNotDelivered: Kafka did not confirm it.
            ValueError, TypeError: a field is wrong.
        """
        producer = WorkflowEventProducer(
            self.config, self.triggers_topic, self.results_topic, source="/workflow-results/airflow"
        )
        with producer:
            return producer.publish_workflow_event(
                EventType.WORKFLOW_TRIGGERED, workflow_id, workflow_run_id, payload, event_id, timeout
            )

    def wait(
        self,
        correlation_id: str | UUID,
        workflow_id: str | None = None,
        timeout: float = TIMEOUT,
        position: Mapping[str, Any] | None = None,
        since: datetime | timedelta | None = None,
    ) -> WorkflowResult:
        """Wait for a result, whatever its status.

        Args:
            correlation_id: the event ID of the trigger.
            workflow_id: a result of another workflow is not taken.
            timeout: seconds.
            position: what `mark` returned before the trigger was published.
            since: instead of a position: when the trigger was published or earlier. An hour ago if both are left out.

        Raises:
            ResultTimeout: none came in time; it tells the last trouble.
            ResultStreamError: the topic cannot be read.
        """
        poller = WorkflowResultPoller(self.config, self.results_topic)
        return poller.poll_for_result(correlation_id, workflow_id, timeout, position, since)

    async def await_result(
        self,
        correlation_id: str | UUID,
        workflow_id: str | None = None,
        timeout: float = TIMEOUT,
        position: Mapping[str, Any] | None = None,
        since: datetime | timedelta | None = None,
    ) -> WorkflowResult:
        """Wait for a result in an event loop: see `wait`. To cancel the task is to end the wait."""
        config = await sync_to_async(lambda: self.config)()  # the look-up of a connection blocks
        poller = AsyncWorkflowResultPoller(config, self.results_topic)
        return await poller.poll_for_result(correlation_id, workflow_id, timeout, position, since)

    def fetch(self, reference: Mapping[str, Any], timeout: float = PUBLISH_TIMEOUT) -> WorkflowResult:
        """Read the result that a reference names: the XCom of a result that was too large for one.

        Args:
            reference: ``{"topic", "partition", "offset", "correlation_id"}``.
            timeout: seconds.

        Raises:
            WorkflowResultUnreadable: it is gone, or was not read in time.
            ValueError: it is not a reference.
        """
        return fetch(self.config, reference, timeout)


_configs: dict[str, dict[str, Any]] = {}
_lock = threading.Lock()


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """Return the first of equal configurations.

    Each look-up of a connection makes its callbacks anew (tokens of a cloud).
    Were they not the same objects, each wait would get a consumer of its own.
    """
    key = json.dumps(config, sort_keys=True, default=_describe)
    with _lock:
        return _configs.setdefault(key, config)


def _describe(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return [_describe(value.func), repr(value.args), repr(value.keywords)]
    return [getattr(value, "__module__", ""), getattr(value, "__qualname__", repr(value))]
