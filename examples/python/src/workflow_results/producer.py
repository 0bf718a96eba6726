"""Triggers workflows: arms the wait for the result, then fires."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from confluent_kafka import KafkaError, KafkaException, Producer

from workflow_results import position
from workflow_results._process import PerProcess, keep_in_child
from workflow_results.connection import Connection
from workflow_results.events import EventType, WorkflowEvent, write_time
from workflow_results.result import ResultStreamError, TriggerNotDelivered
from workflow_results.topic import TopicAdmin

DELIVERY_WAIT = 0.05  # seconds; another thread's poll may have served our callback

# Answers that mean for certain that nothing was written.
_REFUSALS = {
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.MSG_SIZE_TOO_LARGE,
}


class WorkflowEventProducer:
    """Publishes workflow events. Thread-safe, fork-safe; to be closed, or used with ``with``.

    Before it sends, it asks where the results topic ends, and remembers that in
    this process by the event's ID: a `WorkflowResultPoller` that is told nothing
    else begins there.
    """

    def __init__(
        self,
        bootstrap_servers: str | Mapping[str, Any] = "localhost:9092",
        topic: str = "workflow-triggers",
        results_topic: str = "workflow-results",
        *,
        config: Mapping[str, Any] | None = None,
        source: str = "/workflow-results/producer",
    ) -> None:
        """Remember where to publish; nothing is opened yet.

        Args:
            bootstrap_servers: host:port,… or a configuration of confluent-kafka.
            topic: where events go.
            results_topic: where their results will be.
            config: more of confluent-kafka's configuration: SASL, SSL, ….
            source: who publishes, a URI reference (ce_source of CloudEvents).

        Raises:
            ValueError: there are no brokers.
        """
        self.topic = topic
        self.results_topic = results_topic
        self._source = source
        self._connection = Connection(bootstrap_servers, config)
        self._admin = PerProcess(lambda: TopicAdmin(self._connection, results_topic))
        self._clients: PerProcess[_Clients] = PerProcess(lambda: _Clients(self._connection))

    def publish_workflow_event(
        self,
        event_type: EventType | str,
        workflow_id: str,
        workflow_run_id: str,
        payload: Mapping[str, Any],
        event_id: str | UUID | None = None,
        timeout: float = 30.0,
    ) -> WorkflowEvent:
        """Publish an event; returns when Kafka has it.

        Args:
            event_type: ``workflow.triggered`` to start a workflow.
            workflow_id: which workflow.
            workflow_run_id: which run of it.
            payload: what the workflow is given; becomes a JSON object.
            event_id: identity of the event, and the correlation ID of its result; a new one if left out.
            timeout: seconds, for asking where the results end and again for the delivery. Each
                different timeout takes a connection of its own, so use few.

        Returns:
            The event; its ``event_id`` is what to wait for.

        Raises:
            TriggerNotDelivered: Kafka did not confirm it, and it will not be sent later by itself.
            pydantic.ValidationError: a field is wrong.
            TypeError, ValueError: the payload cannot be written as JSON.
        """
        if not isinstance(payload, Mapping):
            raise TypeError(f"the payload becomes a JSON object: give a mapping, not a {type(payload).__qualname__}")
        event = WorkflowEvent.model_validate(
            {
                "event_id": event_id or uuid4(),
                "event_type": event_type,
                "workflow_id": workflow_id,
                "workflow_run_id": workflow_run_id,
                "payload": dict(payload),
            }
        )
        value = event.to_json()
        self._arm(event, timeout)
        self._deliver(event, value, timeout)
        return event

    def close(self) -> None:
        """Close the connections; a later event opens new ones."""
        self._admin.take()
        clients = self._clients.take()
        if clients is not None:
            clients.close()

    def __enter__(self) -> Self:
        """Return the producer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _arm(self, event: WorkflowEvent, timeout: float) -> None:
        """Note where the results end, before anything is sent that may cause one."""
        try:
            armed = position.take(self._admin.get(), self.results_topic, timeout)
        except ResultStreamError as e:
            raise TriggerNotDelivered(str(event.event_id), self.topic, str(e), sent=False) from e
        position.remember(str(event.event_id), armed)

    def _deliver(self, event: WorkflowEvent, value: bytes, timeout: float) -> None:
        clients = self._clients.get()
        key = str(event.event_id)
        reports: list[KafkaError | None] = []
        try:
            client = clients.of(timeout)
            client.produce(
                self.topic, value, key, headers=self._headers(event), on_delivery=lambda err, _: reports.append(err)
            )
        except (KafkaException, BufferError) as e:
            raise TriggerNotDelivered(key, self.topic, str(e), sent=False) from e
        while not reports:  # ends: the client itself gives up after message.timeout.ms
            client.poll(DELIVERY_WAIT)
        error = reports[0]
        if error is not None:
            clients.drop_broken()
            raise TriggerNotDelivered(key, self.topic, clients.explain(error), sent=_may_have_been_sent(error))

    def _headers(self, event: WorkflowEvent) -> list[tuple[str, str | bytes | None]]:
        """Make the headers of CloudEvents 1.0 in Kafka's binary mode, as a result record has them."""
        return [
            ("ce_specversion", "1.0"),
            ("ce_id", str(event.event_id)),
            ("ce_type", event.event_type.value),
            ("ce_source", self._source),
            ("ce_time", write_time(event.timestamp)),
            ("content-type", "application/json"),
        ]


class _Clients:
    """A client for each timeout: what it has not delivered by then, it never sends."""

    def __init__(self, connection: Connection) -> None:
        keep_in_child(self)
        self._broken = False  # a fatal error: a client sends nothing any more
        self._connection = connection
        self._by_timeout: dict[float, Producer] = {}
        self._last_error: KafkaError | None = None
        self._lock = threading.Lock()

    def of(self, timeout: float) -> Producer:
        with self._lock:
            client = self._by_timeout.get(timeout)
            if client is None:
                millis = max(int(timeout * 1000), 1)
                client = Producer(self._connection.producer(self._on_error, **{"message.timeout.ms": millis}))
                self._by_timeout[timeout] = client
            return client

    def drop_broken(self) -> None:
        """After a fatal error let the next event have new clients; whoever uses an old one hears of it there."""
        with self._lock:
            if self._broken:
                self._by_timeout.clear()
                self._broken = False

    def close(self) -> None:
        with self._lock:
            for client in self._by_timeout.values():
                client.flush(0)
            self._by_timeout.clear()

    def explain(self, error: KafkaError) -> str:
        """Tell beside a mere timeout what the client said about its brokers, and of a missing topic who makes it."""
        if error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
            return f"{error}. Make the topic, or start the agent, which does"
        last = self._last_error
        timed_out = error.code() == KafkaError._MSG_TIMED_OUT
        return f"{error} ({last})" if timed_out and last is not None else str(error)

    def _on_error(self, error: KafkaError) -> None:
        self._last_error = error
        self._broken = self._broken or error.fatal()


def _may_have_been_sent(error: KafkaError) -> bool:
    """Say whether the record may be in the topic all the same; only some refusals are certain."""
    return error.code() not in _REFUSALS
