from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from kafka import Kafka, kafka_fixture, own_kafka_fixture, result, topic_fixture
from pydantic import ValidationError

from workflow_results import position
from workflow_results.events import WorkflowEvent
from workflow_results.poller import WorkflowResultPoller
from workflow_results.producer import WorkflowEventProducer
from workflow_results.result import ResultTimeout, TriggerNotDelivered

FIXTURES = (kafka_fixture, own_kafka_fixture, topic_fixture)


@pytest.fixture(name="triggers")
def triggers_fixture(kafka: Kafka) -> str:
    return kafka.create_topic(f"triggers-{uuid4()}")


def trigger(producer: WorkflowEventProducer, **more: Any) -> WorkflowEvent:
    return producer.publish_workflow_event(
        event_type="workflow.triggered", workflow_id="w", workflow_run_id="r", payload={"a": 1}, **more
    )


def read(kafka: Kafka, topic: str, count: int) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": kafka.addr, "group.id": "test"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = consumer.consume(count, 30)
    consumer.close()
    assert len(found) == count
    return found


def test_trigger_is_a_cloud_event_in_binary_mode(kafka: Kafka, topic: str, triggers: str) -> None:
    with WorkflowEventProducer(kafka.addr, triggers, topic, source="/airflow") as producer:
        event = trigger(producer)
    (record,) = read(kafka, triggers, 1)
    assert record.key() == str(event.event_id).encode()
    assert WorkflowEvent.from_json(record.value() or b"") == event
    assert record.headers() == [
        ("ce_specversion", b"1.0"),
        ("ce_id", str(event.event_id).encode()),
        ("ce_type", b"workflow.triggered"),
        ("ce_source", b"/airflow"),
        ("ce_time", json.loads(event.to_json())["timestamp"].encode()),
        ("content-type", b"application/json"),
    ]


def test_given_event_id_is_kept(kafka: Kafka, topic: str, triggers: str) -> None:
    i = uuid4()
    with WorkflowEventProducer({"bootstrap.servers": kafka.addr}, triggers, topic) as producer:
        assert trigger(producer, event_id=str(i)).event_id == i


def test_wait_armed_by_the_producer_begins_before_the_result_and_not_earlier(
    kafka: Kafka, topic: str, triggers: str
) -> None:
    i = uuid4()
    poller = WorkflowResultPoller(kafka.addr, topic, 30)
    kafka.publish(topic, result(i, 1))
    with WorkflowEventProducer(kafka.addr, triggers, topic) as producer:
        trigger(producer, event_id=i)
        with pytest.raises(ResultTimeout, match="from offsets"):
            poller.poll_for_result(i, timeout=0.5)
        kafka.publish(topic, result(i, 2))
    assert poller.poll_for_result(i).result == {"n": 2}


def test_result_that_is_published_at_once_is_found(kafka: Kafka, topic: str, triggers: str) -> None:
    """Whoever answers as soon as the trigger can be read is not too early: the wait was armed before it was sent."""
    poller = WorkflowResultPoller(kafka.addr, topic, 30)
    with WorkflowEventProducer(kafka.addr, triggers, topic) as producer, ThreadPoolExecutor(1) as pool:

        def answer() -> UUID:
            (record,) = read(kafka, triggers, 1)
            kafka.publish(topic, result((record.key() or b"").decode(), 5))
            return UUID((record.key() or b"").decode())

        answered = pool.submit(answer)
        event = trigger(producer)
        assert answered.result(30) == event.event_id
    assert poller.poll_for_result(event.event_id).result == {"n": 5}
    remembered = position.recall(str(event.event_id), topic)
    assert remembered is not None
    assert remembered["offsets"] == {"0": 0, "1": 0}


def test_remembered_positions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position, "MAX_REMEMBERED", 3)
    topic, ids = str(uuid4()), [str(uuid4()) for _ in range(5)]
    for i in ids:
        position.remember(i, {"topic": topic, "topic_id": None, "offsets": {}})
    assert [position.recall(i, topic) is not None for i in ids] == [False, False, True, True, True]
    assert position.recall(ids[4], "another topic") is None


def test_results_topic_that_is_not_there_yet(kafka: Kafka, triggers: str) -> None:
    topic = f"results-{uuid4()}"
    with WorkflowEventProducer(kafka.addr, triggers, topic) as producer:
        event = trigger(producer)
    kafka.create_topic(topic)
    kafka.publish(topic, result(event.event_id, 1))
    assert WorkflowResultPoller(kafka.addr, topic, 30).poll_for_result(event.event_id).result == {"n": 1}


def test_threads_share_a_producer(kafka: Kafka, topic: str, triggers: str) -> None:
    with WorkflowEventProducer(kafka.addr, triggers, topic) as producer, ThreadPoolExecutor(8) as pool:
        ids = {event.event_id for event in pool.map(lambda _: trigger(producer), range(100))}
    assert {record.key() for record in read(kafka, triggers, 100)} == {str(i).encode() for i in ids}


def test_no_broker(topic: str) -> None:
    with (
        WorkflowEventProducer("127.0.0.1:1", "t", topic) as producer,
        pytest.raises(TriggerNotDelivered, match=r"was not sent\): .*Connection refused|brokers are down") as caught,
    ):
        trigger(producer, timeout=0.5)
    assert not caught.value.sent
    assert caught.value.topic == "t"
    UUID(caught.value.event_id)


@pytest.mark.parametrize("config", [{"no.such.setting": 1}, {"max.in.flight": 10}], ids=["any", "of producers"])
def test_configuration_that_no_client_can_be_made_of(kafka: Kafka, topic: str, config: dict[str, int]) -> None:
    with (
        WorkflowEventProducer(kafka.addr, topic, topic, config=config) as producer,
        pytest.raises(TriggerNotDelivered, match="it was not sent") as caught,
    ):
        producer.publish_workflow_event("workflow.triggered", "w", "r", {})
    assert not caught.value.sent
    assert next(iter(config)) in str(caught.value)


def test_broker_that_is_lost_between_arming_and_sending(own_kafka: Kafka) -> None:
    """It is not sent later either: the broker that is back has nothing."""
    results, triggers = own_kafka.create_topic(f"results-{uuid4()}"), own_kafka.create_topic("triggers")
    i = uuid4()
    with WorkflowEventProducer(own_kafka.addr, triggers, results) as producer:
        trigger(producer, timeout=2)
        arm = producer._arm

        def arm_and_lose(event: WorkflowEvent, timeout: float) -> None:
            arm(event, timeout)
            own_kafka.stop()

        producer._arm = arm_and_lose  # type: ignore[method-assign]
        with pytest.raises(TriggerNotDelivered, match=str(i)) as caught:
            trigger(producer, event_id=i, timeout=2)
        assert "_MSG_TIMED_OUT" in caught.value.cause
        producer._arm = arm  # type: ignore[method-assign]
        own_kafka.start()
        last = trigger(producer, timeout=60)
        keys = [record.key() for record in read(own_kafka, triggers, 2)]
    assert keys[1] == str(last.event_id).encode()
    assert str(i).encode() not in keys


def test_unknown_topic_and_too_large_a_payload(kafka: Kafka, topic: str, triggers: str) -> None:
    with (
        WorkflowEventProducer(
            kafka.addr, f"none-{uuid4()}", topic, config={"topic.metadata.propagation.max.ms": 1000}
        ) as producer,
        pytest.raises(TriggerNotDelivered, match=r"UNKNOWN_TOPIC.* Make the topic, or start the agent") as caught,
    ):
        trigger(producer)
    assert not caught.value.sent
    with (
        WorkflowEventProducer(kafka.addr, triggers, topic) as producer,
        pytest.raises(TriggerNotDelivered, match="MSG_SIZE_TOO_LARGE") as caught,
    ):
        producer.publish_workflow_event("workflow.triggered", "w", "r", {"pad": "x" * 2_000_000})
    assert not caught.value.sent


def test_wrong_fields_are_refused_before_anything_is_asked() -> None:
    with WorkflowEventProducer("127.0.0.1:1") as producer:
        with pytest.raises(ValidationError, match="workflow_id"):
            producer.publish_workflow_event("workflow.triggered", "", "r", {})
        with pytest.raises(ValidationError, match="event_type"):
            producer.publish_workflow_event("other", "w", "r", {})
        with pytest.raises(TypeError, match="object"):
            producer.publish_workflow_event("workflow.triggered", "w", "r", {"x": object()})


def test_closed_producer_opens_again(kafka: Kafka, topic: str, triggers: str) -> None:
    producer = WorkflowEventProducer(kafka.addr, triggers, topic)
    producer.close()
    trigger(producer)
    producer.close()
    producer.close()
    trigger(producer)
    producer.close()
    assert len(read(kafka, triggers, 2)) == 2


def test_child_of_a_fork_has_its_own_producer(kafka: Kafka, topic: str, triggers: str) -> None:
    with WorkflowEventProducer(kafka.addr, triggers, topic) as producer:
        trigger(producer)
        pid = os.fork()
        if pid == 0:
            try:
                trigger(producer)
                producer.close()
                os._exit(0)
            except BaseException:
                os._exit(2)
        trigger(producer)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len({record.key() for record in read(kafka, triggers, 3)}) == 3
