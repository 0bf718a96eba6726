"""The hook, the trigger and the ledger by themselves, against a real Kafka."""

from __future__ import annotations

import asyncio
import functools
import json
import pickle
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module, resources
from typing import Any
from uuid import uuid4

import airflow_home
import jsonschema
import pytest
from airflow.triggers.base import TriggerEvent
from airflow_world import Store, context, hubs, over_the_database, waiting
from kafka import Kafka, eventually, kafka_fixture, result, topic_fixture

from workflow_results import hub
from workflow_results.airflow import (
    WorkflowNotTriggered,
    WorkflowResultHook,
    WorkflowResultTrigger,
    WorkflowResultUnreadable,
    WorkflowTaskErrored,
)
from workflow_results.airflow.attempt import Ledger
from workflow_results.airflow.errors import raise_for_status
from workflow_results.airflow.fetch import refer_to
from workflow_results.airflow.get_provider_info import get_provider_info
from workflow_results.airflow.hook import _shared
from workflow_results.airflow.round_trip import Request, ensure_triggered

FIXTURES = (kafka_fixture, topic_fixture)


@pytest.fixture(scope="module", autouse=True)
def hubs_fixture() -> Iterator[None]:
    yield
    hub._stop_all()  # else they would tell of the broker that the session ends


@pytest.fixture(name="hook")
def hook_fixture(kafka: Kafka, topic: str) -> WorkflowResultHook:
    airflow_home.connect("kafka_parts", kafka.addr)
    return WorkflowResultHook(
        "kafka_parts", triggers_topic=kafka.create_topic(f"triggers-{topic}"), results_topic=topic
    )


def in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def test_result_before_the_wait(kafka: Kafka, hook: WorkflowResultHook) -> None:
    position = hook.mark()
    event = hook.publish("w", "r", {"a": 1})
    kafka.publish(hook.results_topic, result(event.event_id, 1))
    for _ in range(2):
        assert hook.wait(event.event_id, "w", 30, position).result == {"n": 1}
    assert hook.fetch(refer_to(hook.wait(event.event_id, position=position))).result == {"n": 1}


def test_errors_survive_pickling(kafka: Kafka, hook: WorkflowResultHook) -> None:
    i, position = uuid4(), hook.mark()
    kafka.publish(hook.results_topic, result(i, status="error", error="boom"))
    with pytest.raises(WorkflowTaskErrored, match="boom") as caught:
        raise_for_status(hook.wait(i, position=position))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), dict(again.result)) == (str(caught.value), dict(caught.value.result))


@pytest.mark.parametrize("change", [{"offset": 0}, {"offset": 99}, {"partition": 0}])
def test_fetch_of_what_is_not_there(kafka: Kafka, hook: WorkflowResultHook, change: dict[str, int]) -> None:
    i = uuid4()
    kafka.publish(hook.results_topic, result(uuid4()), result(i), partition=1)
    reference = {"topic": hook.results_topic, "partition": 1, "offset": 1, "correlation_id": str(i)}
    assert hook.fetch(reference).correlation_id == str(i)
    with pytest.raises(WorkflowResultUnreadable, match=hook.results_topic):
        hook.fetch(reference | change, timeout=2)
    with pytest.raises(ValueError, match="not a reference"):
        hook.fetch({"answer": 42})


@pytest.mark.parametrize(
    ("extra", "wrong"),
    [({"bootstrap.servers": "127.0.0.1:1", "no.such.setting": 1}, "no.such.setting"), ({}, "bootstrap.servers")],
    ids=["unknown setting", "no brokers"],
)
def test_wrong_connection_is_told(monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], wrong: str) -> None:
    extra = {**extra, "sasl.password": "s3cret"}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_WRONG", json.dumps({"conn_type": "kafka", "extra": extra}))
    hook = WorkflowResultHook("kafka_wrong")
    with pytest.raises(WorkflowNotTriggered, match=re.escape(wrong)) as caught:
        trigger(hook, context(Store()), {})
    assert "connection." in str(caught.value)  # what is to be corrected, or looked at
    reference = {"topic": hook.results_topic, "partition": 0, "offset": 0, "correlation_id": str(uuid4())}
    with pytest.raises((WorkflowResultUnreadable, ValueError), match=re.escape(wrong)) as unread:
        hook.fetch(reference)
    assert "s3cret" not in f"{caught.value}{unread.value}"


def test_triggers_share_a_hub_and_leave_it(kafka: Kafka, hook: WorkflowResultHook) -> None:
    """Twelve are serialised and made anew, as on the way to a triggerer; one of them is cancelled."""
    ids = [str(uuid4()) for _ in range(12)]
    position = hook.mark()
    triggers = [over_the_database(a_trigger(hook, i, position=position)) for i in ids]

    async def run() -> list[TriggerEvent]:
        waits = [asyncio.ensure_future(anext(each.run())) for each in triggers]
        await asyncio.to_thread(eventually, lambda: len(waiting(hook.results_topic)) == 12)
        assert len(hubs(hook.results_topic)) == 1
        waits[-1].cancel()
        await asyncio.to_thread(eventually, lambda: len(waiting(hook.results_topic)) == 11)
        await asyncio.to_thread(kafka.publish, hook.results_topic, *[result(i) for i in ids])
        return await asyncio.gather(*waits[:-1])

    events = asyncio.run(run())
    assert [each.payload["correlation_id"] for each in events] == ids[:-1]
    assert {each.payload["status"] for each in events} == {"found"}
    assert hook.fetch(events[0].payload["reference"]).result == {"n": 0}


def test_trigger_that_begins_after_its_end_still_looks(kafka: Kafka, hook: WorkflowResultHook) -> None:
    i = str(uuid4())
    position = hook.mark()
    kafka.publish(hook.results_topic, result(i))
    late = a_trigger(hook, i, end_time=datetime.now(UTC) - timedelta(hours=1), position=position)
    assert asyncio.run(anext(late.run())).payload["status"] == "found"


def test_trigger_that_times_out(hook: WorkflowResultHook) -> None:
    i = str(uuid4())
    trigger = a_trigger(hook, i, end_time=datetime.now(UTC), since=datetime.now(UTC))
    payload = asyncio.run(anext(trigger.run())).payload
    assert payload["status"] == "timeout"
    assert i in payload["message"]
    eventually(lambda: not waiting(hook.results_topic))


def a_trigger(hook: WorkflowResultHook, i: str, end_time: datetime | None = None, **where: Any) -> Any:
    return WorkflowResultTrigger(i, end_time or in_an_hour(), "w", hook.results_topic, hook.kafka_config_id, **where)


def trigger(hook: WorkflowResultHook, of: Any, payload: Any = None) -> Any:
    return ensure_triggered(hook, Request("w", {} if payload is None else payload), Ledger.of_task(of, "x"), 10)


def published(kafka: Kafka, hook: WorkflowResultHook) -> int:
    """Count the records of the triggers topic."""
    return sum(WorkflowResultHook(hook.kafka_config_id, results_topic=hook.triggers_topic).mark()["offsets"].values())


def test_tries_of_one_epoch_publish_once(kafka: Kafka, hook: WorkflowResultHook) -> None:
    store = Store()
    first = trigger(hook, context(store))
    assert trigger(hook, context(store, try_number=2)) == first
    assert published(kafka, hook) == 1
    Ledger.of_task(context(store), "x").consumed(first.event_id)
    second = trigger(hook, context(store, try_number=2))
    cleared = trigger(hook, context(store, try_number=3, max_tries=4))
    assert len({first.event_id, second.event_id, cleared.event_id}) == 3
    assert published(kafka, hook) == 3


def test_crash_between_writing_and_publishing(kafka: Kafka, hook: WorkflowResultHook) -> None:
    """The ID and the position are written first; the retry publishes under the same ID, from the same position."""
    store = Store()
    begun = Ledger.of_task(context(store), "x").begin(hook.mark())
    kafka.publish(hook.results_topic, result(begun.event_id, 5))  # an answer to what may have been sent
    after = trigger(hook, context(store, try_number=2))
    assert (after.event_id, after.position) == (begun.event_id, begun.position)
    assert hook.wait(after.event_id, position=after.position).result == {"n": 5}
    assert published(kafka, hook) == 1


def test_without_a_store_a_retry_publishes_the_same_id_and_looks_back(kafka: Kafka, hook: WorkflowResultHook) -> None:
    first = trigger(hook, context(None))
    again = trigger(hook, context(None, try_number=2))
    assert (again.event_id, again.position) == (first.event_id, None)
    assert trigger(hook, context(None, try_number=2, max_tries=3)).event_id != first.event_id  # cleared: a first try
    assert published(kafka, hook) == 3


@pytest.mark.parametrize("payload", [[1], {"x": float("nan")}, {"x": object()}])
def test_payload_that_is_no_json_object(kafka: Kafka, hook: WorkflowResultHook, payload: Any) -> None:
    with pytest.raises(WorkflowNotTriggered, match="Correct the task's arguments"):
        trigger(hook, context(Store()), payload)
    assert published(kafka, hook) == 0


def test_equal_configurations_are_one() -> None:
    """Providers make their callbacks for tokens anew with each look-up."""
    config = {"bootstrap.servers": "b:1", "oauth_cb": functools.partial(int, "1")}
    again = {"bootstrap.servers": "b:1", "oauth_cb": functools.partial(int, "1")}
    other = {"bootstrap.servers": "b:1", "oauth_cb": functools.partial(int, "2")}
    assert _shared(config) is _shared(again) is not _shared(other)


def test_provider_info() -> None:
    schema = json.loads((resources.files("airflow") / "provider_info.schema.json").read_text())
    info = get_provider_info()
    jsonschema.validate(info, schema)
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for module in info[kind][0]["python-modules"]:
            import_module(module)
