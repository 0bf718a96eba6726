from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError
from kafka import Background, Kafka, eventually, kafka_fixture, own_kafka_fixture, result, topic_fixture

from workflow_results import hub
from workflow_results.connection import Connection
from workflow_results.poller import AsyncWorkflowResultPoller, WorkflowResultPoller
from workflow_results.result import (
    ResultStreamError,
    ResultTimeout,
    ResultWaitError,
    TriggerNotDelivered,
    WorkflowErrored,
    WorkflowFailed,
    WorkflowResult,
)

FIXTURES = (kafka_fixture, own_kafka_fixture, topic_fixture)


def hubs(topic: str) -> list[hub.Hub]:
    return [each for each in hub._hubs.values() if each._topic == topic]


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, *_: object) -> None: ...


def test_same_configurations_share_a_hub(kafka: Kafka, topic: str) -> None:
    callback, odd = partial(print), Unhashable()
    configs = [
        {"socket.timeout.ms": 9000, "error_cb": callback, "stats_cb": odd},
        {"error_cb": callback, "stats_cb": odd, "socket.timeout.ms": "9000"},
    ]
    for config in configs:
        with pytest.raises(ResultTimeout):
            WorkflowResultPoller(kafka.addr, topic, config=config).poll_for_result(uuid4(), timeout=0.1)
    assert len(hubs(topic)) == 1
    other = {**configs[0], "stats_cb": Unhashable()}
    with pytest.raises(ResultTimeout):
        WorkflowResultPoller(kafka.addr, topic, config=other).poll_for_result(uuid4(), timeout=0.1)
    assert len(hubs(topic)) == 2


def test_connection_keys() -> None:
    assert Connection("a:1").key == Connection({"bootstrap.servers": "a:1"}).key
    assert Connection("a:1").key != Connection("a:2").key
    assert Connection("a:1").key != Connection("a:1", {"oauth_cb": Unhashable()}).key


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LINGER", 0.3)


@pytest.mark.usefixtures("short_linger")
def test_hub_ends_when_nobody_waits_and_closes_its_consumers(kafka: Kafka, topic: str) -> None:
    poller = WorkflowResultPoller(kafka.addr, topic)
    i = uuid4()
    kafka.publish(topic, result(i))
    poller.poll_for_result(i, timeout=30)
    (first,) = hubs(topic)
    first.join(30)
    assert not hubs(topic)
    with pytest.raises(RuntimeError, match="closed"):
        first._live.read(0)
    assert poller.poll_for_result(i, timeout=30).result == {"n": 0}
    assert hubs(topic) != [first]


@pytest.mark.usefixtures("short_linger")
def test_hub_stays_while_somebody_waits(kafka: Kafka, topic: str) -> None:
    with pytest.raises(ResultTimeout):
        WorkflowResultPoller(kafka.addr, topic).poll_for_result(uuid4(), timeout=1.5)
    assert len(hubs(topic)) == 1


def test_configuration_that_no_client_can_be_made_of() -> None:
    poller = WorkflowResultPoller("127.0.0.1:1", config={"no.such.setting": 1})
    with pytest.raises(ResultStreamError, match=r"no\.such\.setting"):
        poller.poll_for_result(uuid4(), timeout=30)


def test_configuration_that_the_end_of_the_topic_cannot_be_asked_with() -> None:
    poller = WorkflowResultPoller("127.0.0.1:1", config={"no.such.setting": 1})
    with pytest.raises(ResultStreamError, match=r"no\.such\.setting"):
        poller.mark(timeout=30)


def test_death_of_the_hub_reaches_every_waiter_and_the_next_gets_a_new_one(own_kafka: Kafka) -> None:
    topic = own_kafka.create_topic(f"results-{uuid4()}")
    deadly = threading.Event()

    def error_cb(error: KafkaError) -> None:
        if deadly.is_set():
            raise RuntimeError(f"told of {error}")

    poller = WorkflowResultPoller(own_kafka.addr, topic, 60, config={"error_cb": error_cb})
    coroutines = AsyncWorkflowResultPoller(own_kafka.addr, topic, 60, config={"error_cb": error_cb})
    with ThreadPoolExecutor() as pool:
        waits = [pool.submit(poller.poll_for_result, uuid4()) for _ in range(3)]
        waits.append(pool.submit(lambda: asyncio.run(coroutines.poll_for_result(uuid4()))))
        eventually(lambda: hubs(topic) and len(hubs(topic)[0]._waiting) == 4)
        (dead,) = hubs(topic)
        deadly.set()
        own_kafka.stop()
        for wait in waits:
            with pytest.raises(ResultStreamError, match="RuntimeError: told of"):
                wait.result(60)
    dead.join(30)
    assert not hubs(topic)
    deadly.clear()
    own_kafka.start()
    i = uuid4()
    own_kafka.publish(topic, result(i, 1))
    assert poller.poll_for_result(i).result == {"n": 1}
    assert hubs(topic) != [dead]


def test_stopped_hub_tells_its_waiters(kafka: Kafka, topic: str) -> None:
    wait = Background(WorkflowResultPoller(kafka.addr, topic).poll_for_result, uuid4())
    eventually(lambda: hubs(topic) and hubs(topic)[0]._waiting)
    hubs(topic)[0].stop()
    with pytest.raises(ResultStreamError, match="the process ends"):
        wait.outcome()


def test_the_collector_may_end_an_abandoned_wait_at_any_moment(kafka: Kafka, topic: str) -> None:
    """It runs in whichever thread makes an object, the hub's own and one that joins it, which hold the lock."""
    i = uuid4()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(AsyncWorkflowResultPoller(kafka.addr, topic).poll_for_result(i, timeout=60))
    loop.run_until_complete(asyncio.sleep(0))
    eventually(lambda: hubs(topic)[0]._waiting)
    loop.close()  # nobody looks after the task any more
    ended = weakref.ref(waiting)
    gc.disable()
    try:
        del waiting, loop
        kafka.publish(topic, result(i))
        eventually(lambda: not hubs(topic)[0]._waiting)

        def collect() -> None:
            with hub._lock:
                gc.collect()

        Background(collect).outcome()
    finally:
        gc.enable()
    assert ended() is None


def test_child_of_a_fork_has_its_own_hub(kafka: Kafka, topic: str) -> None:
    poller = WorkflowResultPoller(kafka.addr, topic, 60)
    i, j, position = uuid4(), uuid4(), poller.mark()
    wait = Background(poller.poll_for_result, i)
    eventually(lambda: hubs(topic) and hubs(topic)[0]._waiting)
    pid = os.fork()
    if pid == 0:
        try:
            gc.collect()  # whatever the child lets go of, it does not hang
            poller.mark()
            os._exit(0 if poller.poll_for_result(j, position=position).result == {"n": 2} else 1)
        except BaseException:
            os._exit(2)
    kafka.publish(topic, result(i, 1), result(j, 2))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert wait.outcome().result == {"n": 1}


def test_child_of_a_fork_may_collect_what_the_parent_forgot(kafka: Kafka, topic: str) -> None:
    gc.collect()
    gc.disable()  # so that the garbage is still there at the fork
    try:
        for _ in range(3):
            WorkflowResultPoller(kafka.addr, topic).mark()
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(30)
                gc.collect()
                os._exit(0)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        gc.enable()


EXITING = """
    import os, sys, threading
    from workflow_results.poller import WorkflowResultPoller
    from workflow_results.producer import WorkflowEventProducer

    broker, topic, ids = sys.argv[1], sys.argv[2], sys.argv[3:]
    poller = WorkflowResultPoller(broker, topic, 60)
    producer = WorkflowEventProducer(broker, topic, topic)
    producer.publish_workflow_event("workflow.triggered", "w", "r", {})
    poller.poll_for_result(ids[0])
    child = os.fork()
    poller.poll_for_result(ids[0 if child else 1])
    producer.publish_workflow_event("workflow.triggered", "w", "r", {})
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("child", code)
    # both interpreters end in the ordinary way
"""


def test_parent_and_child_end_in_the_ordinary_way(kafka: Kafka, topic: str) -> None:
    i, j = uuid4(), uuid4()
    kafka.publish(topic, result(i), result(j))
    source = Path(__file__).parents[1] / "src"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXITING), kafka.addr, topic, str(i), str(j)],
        capture_output=True, text=True, timeout=90, env={**os.environ, "PYTHONPATH": str(source)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "child 0\n", "")


def test_results_and_errors_survive_pickling() -> None:
    i = str(uuid4())
    it = WorkflowResult.from_record(result(i, 3, status="error", error="boom")[1], "t", 1, 7)
    assert pickle.loads(pickle.dumps(it)) == it
    assert pickle.loads(pickle.dumps(it)).offset == 7
    errors: list[ResultWaitError] = [
        WorkflowFailed(it),
        WorkflowErrored(it),
        ResultTimeout(i, "t", 1.5, "from its start", 3, "trouble"),
        ResultStreamError("t", "cause"),
        TriggerNotDelivered(i, "t", "cause", True),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)
        assert isinstance(copy, ResultWaitError)
