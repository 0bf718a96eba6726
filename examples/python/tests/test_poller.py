from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import KafkaException
from conftest import Sidecar
from kafka import (
    Background,
    Kafka,
    eventually,
    kafka_fixture,
    own_kafka_fixture,
    result,
    topic_fixture,
)

from workflow_results import SidecarClient, hub
from workflow_results.poller import AsyncWorkflowResultPoller, WorkflowResultPoller
from workflow_results.result import ResultTimeout, WorkflowErrored, WorkflowFailed, WorkflowResult

FIXTURES = (kafka_fixture, own_kafka_fixture, topic_fixture)
HOUR = 3_600_000  # milliseconds


@pytest.fixture(name="poller")
def poller_fixture(kafka: Kafka, topic: str) -> WorkflowResultPoller:
    return WorkflowResultPoller(kafka.addr, topic, timeout=30)


def waiting(poller: WorkflowResultPoller, *ids: UUID, **how: Any) -> list[Background]:
    """Begin to wait in threads; returns when all are registered with the hub, and what is before them was read."""
    started = [Background(poller.poll_for_result, each, **how) for each in ids]
    eventually(lambda: all(waiter_of(poller.topic, each) is not None for each in ids))
    eventually(lambda: all(waiter_of(poller.topic, each).settled for each in ids))  # type: ignore[union-attr]
    return started


def waiter_of(topic: str, correlation_id: UUID) -> hub.Waiter | None:
    found = hub_of(topic)._waiting.get(str(correlation_id).encode(), [])
    return found[0] if found else None


def hub_of(topic: str) -> hub.Hub:
    (found,) = [each for each in hub._hubs.values() if each._topic == topic]
    return found


def test_result_that_is_there_already(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i = uuid4()
    kafka.publish(poller.topic, result(uuid4(), 9), result(i, 1), (None, b"no key"), result(i, 2))
    found = poller.poll_for_result(str(i).upper())
    assert isinstance(found, WorkflowResult)
    assert found.result == {"n": 1}
    assert (found.topic, found.correlation_id, found.offset >= 0) == (poller.topic, str(i), True)


def test_result_from_the_sidecar_and_its_embedded_broker(sidecar: Sidecar, client: SidecarClient) -> None:
    i = uuid4()
    poller = WorkflowResultPoller(sidecar.broker, timeout=30)
    position = poller.mark()
    wait = Background(poller.poll_for_result, i, "w", position=position)
    client.publish(correlation_id=i, workflow_id="w", workflow_run_id="r", result={"a": [1, "é"]})
    assert wait.outcome().result == {"a": [1, "é"]}
    assert poller.poll_for_result(i, "w").result == {"a": [1, "é"]}


def test_result_that_comes_during_the_wait(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i = uuid4()
    (wait,) = waiting(poller, i)
    kafka.publish(poller.topic, result(i, 1))
    assert wait.outcome().result == {"n": 1}


def test_result_between_mark_and_wait(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i = uuid4()
    kafka.publish(poller.topic, result(i, 1))
    position = json.loads(json.dumps(poller.mark()))
    kafka.publish(poller.topic, result(i, 2))
    assert poller.poll_for_result(i, position=position).result == {"n": 2}
    assert poller.poll_for_result(i, position=position).result == {"n": 2}
    assert poller.poll_for_result(i).result == {"n": 1}


def test_waits_with_different_beginnings_share_a_backfill(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i = uuid4()
    begin = poller.mark()
    kafka.publish(poller.topic, result(i, 1))
    middle = poller.mark()
    kafka.publish(poller.topic, result(i, 2))
    with ThreadPoolExecutor(20) as pool:
        waits = [
            pool.submit(poller.poll_for_result, i, position=position) for _ in range(10) for position in (begin, middle)
        ]
        found = [wait.result(60).result["n"] for wait in waits]
    assert found == [1, 2] * 10


def test_since_leaves_out_what_is_older(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i = uuid4()
    now = int(time.time() * 1000)
    kafka.publish(poller.topic, result(i, 1), timestamp=now - 3 * HOUR)
    kafka.publish(poller.topic, result(i, 2), timestamp=now - HOUR // 2 - 120_000)  # within the skew
    assert poller.poll_for_result(i, since=timedelta(minutes=30)).result == {"n": 2}
    assert poller.poll_for_result(i, since=datetime.now(UTC) - timedelta(minutes=30)).result == {"n": 2}
    assert poller.poll_for_result(i).result == {"n": 2}
    assert poller.poll_for_result(i, since=timedelta(hours=4)).result == {"n": 1}


def test_ten_thousand_foreign_records_between(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i, late = uuid4(), uuid4()
    position = poller.mark()
    kafka.publish(poller.topic, *[result(uuid4()) for _ in range(5000)], result(i, 1))
    (wait,) = waiting(poller, late)
    kafka.publish(poller.topic, *[result(uuid4()) for _ in range(5000)], result(late, 2))
    assert poller.poll_for_result(i, position=position).result == {"n": 1}
    assert wait.outcome().result == {"n": 2}


def test_two_hundred_waits_share_one_hub(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    ids = [uuid4() for _ in range(200)]
    waits = waiting(poller, *ids[:100])
    shared = hub_of(poller.topic)
    kafka.publish(poller.topic, *[result(i, n) for n, i in enumerate(ids)])
    assert [wait.outcome().result["n"] for wait in waits] == list(range(100))
    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(WorkflowResultPoller(kafka.addr, poller.topic, 30).poll_for_result, ids[100:]))
    assert [each.result["n"] for each in found] == list(range(100, 200))
    assert hub_of(poller.topic) is shared


def test_two_hundred_asyncio_waits(kafka: Kafka, topic: str) -> None:
    poller = AsyncWorkflowResultPoller(kafka.addr, topic, timeout=30)
    ids = [uuid4() for _ in range(200)]

    async def run() -> list[WorkflowResult]:
        position = await poller.mark()
        tasks = [asyncio.create_task(poller.poll_for_result(i, position=position)) for i in ids]
        await asyncio.to_thread(kafka.publish, topic, *[result(i, n) for n, i in enumerate(ids[:100])])
        await asyncio.gather(*tasks[:100])
        await asyncio.to_thread(kafka.publish, topic, *[result(i, n) for n, i in enumerate(ids[100:])])
        return await asyncio.gather(*tasks)

    found = asyncio.run(run())
    assert [each.result["n"] for each in found] == [*range(100), *range(100)]
    eventually(lambda: not hub_of(topic)._waiting)


def test_asyncio_timeout_and_cancel_deregister(kafka: Kafka, topic: str) -> None:
    poller = AsyncWorkflowResultPoller(kafka.addr, topic)
    i = uuid4()

    async def run() -> None:
        with pytest.raises(ResultTimeout, match=str(i)):
            await poller.poll_for_result(i, timeout=0.3)
        task = asyncio.create_task(poller.poll_for_result(i))
        await asyncio.to_thread(eventually, lambda: waiter_of(topic, i) is not None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    eventually(lambda: not hub_of(topic)._waiting)


def test_open_transaction_of_another_delays_and_hides_nothing(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i, j = uuid4(), uuid4()
    position = poller.mark()
    kafka.publish(poller.topic, result(i, 1), partition=0)
    other = kafka.transaction()
    other.produce(poller.topic, b"{}", "other", partition=0)
    other.produce(poller.topic, result(j, 7)[1], str(j), partition=0)
    other.flush(30)
    kafka.publish(poller.topic, result(j, 2), partition=0)  # behind the open transaction: not stable yet
    assert poller.poll_for_result(i, position=position).result == {"n": 1}
    (wait,) = waiting(poller, j, position=position)
    with pytest.raises(ResultTimeout):
        poller.poll_for_result(j, position=position, timeout=0.5)
    other.commit_transaction(30)
    assert wait.outcome().result == {"n": 7}
    assert poller.poll_for_result(j, position=position).result == {"n": 7}


def test_aborted_transaction_is_not_seen(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i, position = uuid4(), poller.mark()
    (wait,) = waiting(poller, i)
    aborted = kafka.transaction()
    aborted.produce(poller.topic, result(i, 1)[1], str(i), partition=0)
    aborted.flush(30)
    aborted.abort_transaction(30)
    committed = kafka.transaction()
    committed.produce(poller.topic, result(i, 2)[1], str(i), partition=0)
    committed.commit_transaction(30)
    assert wait.outcome().result == {"n": 2}
    assert poller.poll_for_result(i, position=position).result == {"n": 2}


def test_backfill_ends_at_markers_and_aborted_records(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    """No offset below the end is ever delivered, yet the backfill knows that it is over."""
    position = poller.mark()
    for _ in range(3):
        aborted = kafka.transaction()
        aborted.produce(poller.topic, b"{}", "x", partition=0)
        aborted.flush(30)
        aborted.abort_transaction(30)
    i = uuid4()
    (wait,) = waiting(poller, i, position=position)  # returns when the backfill is over
    kafka.publish(poller.topic, result(i, 1))
    assert wait.outcome().result == {"n": 1}


def test_topic_that_is_made_during_the_wait(kafka: Kafka) -> None:
    topic, i, j = f"late-{uuid4()}", uuid4(), uuid4()
    poller = WorkflowResultPoller(kafka.addr, topic, 30)
    position = poller.mark()
    assert position["offsets"] == {}
    with pytest.raises(ResultTimeout, match=r"UNKNOWN_TOPIC_OR_PART"):
        poller.poll_for_result(i, timeout=0.5)
    waits = [Background(poller.poll_for_result, i), Background(poller.poll_for_result, j, position=position)]
    eventually(lambda: len(hub_of(topic)._joining) == 2)
    kafka.create_topic(topic)
    kafka.publish(topic, result(i, 1), result(j, 2))
    assert [wait.outcome().result["n"] for wait in waits] == [1, 2]


def test_partitions_that_are_added_during_the_wait(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i, j, position = uuid4(), uuid4(), poller.mark()
    waits = waiting(poller, i, position=position) + waiting(poller, j)
    kafka.add_partitions(poller.topic, 4)
    eventually(lambda: poller.mark()["offsets"].keys() == {"0", "1", "2", "3"})
    kafka.publish(poller.topic, result(i, 1), partition=3)
    kafka.publish(poller.topic, result(j, 2), partition=2)
    assert [wait.outcome().result["n"] for wait in waits] == [1, 2]
    assert poller.poll_for_result(i, position=position).result == {"n": 1}


def test_topic_that_is_deleted_and_made_anew(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    kafka.publish(poller.topic, *[result(uuid4()) for _ in range(50)])
    i, j, position = uuid4(), uuid4(), poller.mark()
    waits = waiting(poller, i, position=position) + waiting(poller, j)
    kafka.delete_topic(poller.topic)
    eventually(lambda: hub_of(poller.topic).trouble)
    eventually(lambda: made(kafka, poller.topic))
    kafka.publish(poller.topic, result(i, 1), partition=0)
    kafka.publish(poller.topic, result(j, 2), partition=1)
    assert [wait.outcome().result["n"] for wait in waits] == [1, 2]
    assert poller.poll_for_result(i, position=position).result == {"n": 1}


def made(kafka: Kafka, topic: str) -> bool:
    try:
        kafka.create_topic(topic, 2)
    except KafkaException:  # the old one is still being deleted
        return False
    return True


def test_broker_that_stops_and_starts_during_the_wait(own_kafka: Kafka) -> None:
    topic = own_kafka.create_topic(f"results-{uuid4()}", 2)
    poller = WorkflowResultPoller(own_kafka.addr, topic, 90)
    i, j = uuid4(), uuid4()
    (wait,) = waiting(poller, i)
    own_kafka.stop()
    with pytest.raises(ResultTimeout, match=r"last trouble: .*(Connection refused|brokers are down)") as caught:
        poller.poll_for_result(j, timeout=5)
    assert own_kafka.addr in str(caught.value) or "brokers are down" in str(caught.value)
    during = Background(poller.poll_for_result, j)
    own_kafka.start()
    own_kafka.publish(topic, result(i, 1), result(j, 2))
    assert wait.outcome(90).result == {"n": 1}
    assert during.outcome(90).result == {"n": 2}
    eventually(lambda: hub_of(topic).trouble is None)


def test_timeout_tells_all(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i, position = uuid4(), poller.mark()
    kafka.publish(poller.topic, *[result(uuid4()) for _ in range(10)])
    with pytest.raises(ResultTimeout) as caught:
        poller.poll_for_result(i, position=position, timeout=1.5)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.correlation_id, error.topic, error.records, error.trouble) == (str(i), poller.topic, 10, None)
    assert 1.5 <= error.waited < 5
    assert error.begin == "from offsets 0 of partition 0, 0 of partition 1"
    for part in (str(i), poller.topic, "10 records", "from offsets", "without any trouble"):
        assert part in str(error)
    eventually(lambda: not hub_of(poller.topic)._waiting)


def test_timeout_without_any_broker() -> None:
    poller = WorkflowResultPoller("127.0.0.1:1", "nowhere")
    with pytest.raises(ResultTimeout, match=r"0 records .*127\.0\.0\.1:1.*Connection refused|brokers are down"):
        poller.poll_for_result(uuid4(), timeout=1)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda i: b"not JSON", "Expecting value"),
        (lambda i: result(uuid4())[1], "its correlation_id is"),
        (lambda i: result(i, workflow_id="other")[1], "its workflow_id is other, not w"),
        (lambda i: result(i, status="done")[1], "status: "),
        (lambda i: result(i, extra=1)[1], "extra: "),
    ],
)
def test_record_of_our_key_that_is_not_our_result(
    kafka: Kafka, poller: WorkflowResultPoller, value: Callable[[UUID], bytes], told: str
) -> None:
    i = uuid4()
    kafka.publish(poller.topic, (str(i), value(i)))
    with pytest.raises(ResultTimeout, match=f"offset 0 is not the result: .*{told}"):
        poller.poll_for_result(i, "w", timeout=1)
    kafka.publish(poller.topic, result(i, 2))
    assert poller.poll_for_result(i, "w").result == {"n": 2}


def test_first_result_counts_even_if_a_later_one_is_read_before_it(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    """The backfill is held up until the hub has read the second result live."""
    i, position = uuid4(), poller.mark()
    kafka.publish(poller.topic, result(i, 1))
    waiting(poller, uuid4())
    shared = hub_of(poller.topic)
    begin, shared._begin_backfill = shared._begin_backfill, lambda: None  # type: ignore[method-assign]
    wait = Background(poller.poll_for_result, i, position=position)
    eventually(lambda: waiter_of(poller.topic, i) is not None)
    kafka.publish(poller.topic, result(i, 2))
    eventually(lambda: waiter_of(poller.topic, i).held is not None)  # type: ignore[union-attr]
    shared._begin_backfill = begin  # type: ignore[method-assign]
    assert wait.outcome().result == {"n": 1}


def test_statuses(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i, j, k = uuid4(), uuid4(), uuid4()
    kafka.publish(
        poller.topic, result(i), result(j, status="failure", error="declined"), result(k, status="error", error="boom")
    )
    success = poller.poll_for_result(i)
    assert success.raise_for_status() is success
    failure = poller.poll_for_result(j)
    with pytest.raises(WorkflowFailed, match="status failure: declined") as failed:
        failure.raise_for_status()
    assert failed.value.result is failure
    assert not isinstance(failed.value, WorkflowErrored)
    with pytest.raises(WorkflowErrored, match="status error: boom"):
        poller.poll_for_result(k).raise_for_status()


def test_result_is_a_mapping(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    i = uuid4()
    record = result(i, 5)
    kafka.publish(poller.topic, record)
    found = poller.poll_for_result(i)
    assert dict(found) == json.loads(record[1]) == json.loads(json.dumps(dict(found)))
    assert (found.get("status"), found["result"], found.get("topic")) == ("success", {"n": 5}, None)
    assert found.timestamp == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


def test_wrong_arguments(kafka: Kafka, poller: WorkflowResultPoller) -> None:
    position = poller.mark()
    with pytest.raises(ValueError, match="not both"):
        poller.poll_for_result(uuid4(), position=position, since=timedelta(hours=1))
    with pytest.raises(ValueError, match="aware"):
        poller.poll_for_result(uuid4(), since=datetime(2026, 1, 2))
    with pytest.raises(ValueError, match=r"'.*', no UUID: it is the event_id of the trigger"):
        poller.poll_for_result("nonsense")
    with pytest.raises(ValueError, match="in topic other"):
        poller.poll_for_result(uuid4(), position=position | {"topic": "other"})
    with pytest.raises(ValueError, match="mark"):
        poller.poll_for_result(uuid4(), position={"0": 7})
    with pytest.raises(ValueError, match="bootstrap"):
        WorkflowResultPoller("")
