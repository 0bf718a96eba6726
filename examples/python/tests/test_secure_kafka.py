from __future__ import annotations

import base64
import json
import time
from typing import Any
from uuid import uuid4

import pytest
from kafka import PASSWORD, Background, Kafka, eventually, kafka_fixture, result, topic_fixture

from workflow_results import hub
from workflow_results.poller import WorkflowResultPoller
from workflow_results.producer import WorkflowEventProducer
from workflow_results.result import ResultStreamError, ResultTimeout, TriggerNotDelivered

FIXTURES = (kafka_fixture, topic_fixture)


def plain(user: str) -> dict[str, Any]:
    return {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": user,
        "sasl.password": PASSWORD,
    }  # fmt: skip


def test_right_to_read_the_topic_is_all_that_a_waiter_needs(kafka: Kafka, topic: str) -> None:
    kafka.let_waiter_read(topic)
    poller = WorkflowResultPoller(kafka.secure_addr, topic, 30, config=plain("waiter"))
    i, j, position = uuid4(), uuid4(), poller.mark()
    kafka.publish(topic, result(i, 1))
    assert poller.poll_for_result(i, position=position).result == {"n": 1}
    wait = Background(poller.poll_for_result, j)
    eventually(lambda: any(each._waiting for each in hub._hubs.values() if each._topic == topic))
    kafka.publish(topic, result(j, 2))
    assert wait.outcome().result == {"n": 2}


def test_missing_right_is_told(kafka: Kafka, topic: str) -> None:
    poller = WorkflowResultPoller(kafka.secure_addr, topic, config=plain("stranger"))
    with pytest.raises(ResultTimeout, match=r"last trouble: .*TOPIC_AUTHORIZATION_FAILED"):
        poller.poll_for_result(uuid4(), timeout=2)
    with pytest.raises(ResultStreamError, match="TOPIC_AUTHORIZATION_FAILED"):
        poller.mark()
    with (
        WorkflowEventProducer(kafka.secure_addr, topic, topic, config=plain("stranger")) as producer,
        pytest.raises(TriggerNotDelivered, match="TOPIC_AUTHORIZATION_FAILED"),
    ):
        producer.publish_workflow_event("workflow.triggered", "w", "r", {})


def test_wrong_password_is_told(kafka: Kafka, topic: str) -> None:
    config = plain("waiter") | {"sasl.password": "wrong"}
    with pytest.raises(ResultTimeout, match="_AUTHENTICATION") as caught:
        WorkflowResultPoller(kafka.secure_addr, topic, config=config).poll_for_result(uuid4(), timeout=2)
    assert "wrong" not in str(caught.value)


def test_tokens_of_oauth_cb_are_fetched_and_refreshed(kafka: Kafka, topic: str) -> None:
    kafka.let_waiter_read(topic)
    calls: list[float] = []

    def token(_: str) -> tuple[str, float]:
        calls.append(time.time())
        return unsecured("waiter", calls[-1] + 4), calls[-1] + 4

    config = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER", "oauth_cb": token}
    poller = WorkflowResultPoller(kafka.secure_addr, topic, 60, config=config)
    i, position = uuid4(), poller.mark()
    wait = Background(poller.poll_for_result, i, position=position)
    eventually(lambda: calls and calls[-1] > calls[0] + 6)  # refreshed more than once
    kafka.publish(topic, result(i, 1))
    assert wait.outcome().result == {"n": 1}
    assert poller.mark() != position


def unsecured(subject: str, expiry: float) -> str:
    parts = ({"alg": "none"}, {"sub": subject, "iat": int(time.time()), "exp": int(expiry)})
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), ""])
