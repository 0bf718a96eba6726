"""The whole loop, all parts real: a DAG's task, Kafka, the agent, a graph, the sidecar, the task's return value.

A test tells a story that happens while the task waits: its run of the graph
stands at a gate until the story lets it go on. Whatever the waiting side can see
is tried with a task that waits in the worker ("poll") and with one that is deferred.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import airflow_home
import pytest
from agent_world import QUICK, TIMEOUT, Agent, PromptKafka, World, eventually, hold, release
from airflow_world import Run, context, dags_fixture, errors, hubs, over_the_database, waiting
from kafka import result

from workflow_results import hub
from workflow_results.airflow.hook import RESULTS_TOPIC, TRIGGERS_TOPIC

FIXTURES = (dags_fixture,)
WORKFLOW = "order-review"
CROWD = 200

both_ways = pytest.mark.parametrize("way", ["poll", "deferred"])


class Loop(World):
    """All parts but Airflow, for all tests of this file; `put_up` starts what a test has left down."""

    def __init__(self, kafka: PromptKafka, directory: Path) -> None:
        super().__init__(kafka, directory, 3, TRIGGERS_TOPIC, kafka.create_topic(RESULTS_TOPIC, 3))
        self.running: Agent | None = None
        # One thread for all stories: what it starts is killed when it ends (setpriv --pdeathsig).
        self._teller = ThreadPoolExecutor(1)

    def put_up(self) -> None:
        if not self.kafka.running:
            self.kafka.start()
        if not self.sidecar_running:
            self.start_sidecar()
        if self.running is None or self.running.process.poll() is not None:
            self.start_agent()

    def start_agent(self) -> Agent:
        self.running = self.agent("durable", "--workflow-id", WORKFLOW, "--concurrency", "8", kafka=QUICK)
        return self.running

    def kill_agent(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running = None

    def run(self, dag: Any, story: Callable[[], None] = lambda: None, **conf: Any) -> Run:
        """Run a DAG to its end, and the story in a thread meanwhile."""
        told = self._teller.submit(story)
        run = Run(dag, **conf)
        told.result(TIMEOUT)
        return run

    def close(self) -> None:
        super().close()
        self._teller.shutdown()

    def awaited(self) -> str:
        """Wait until the task waits; returns the correlation ID."""
        found: list[str] = []

        def look() -> bool:
            found[:] = waiting(self.results_topic)
            return bool(found)

        eventually(look)
        return found[0]

    def triggers_of(self, run_id: str) -> list[dict[str, Any]]:
        """Read the triggers of a DAG's run."""
        sent = [json.loads(each.value() or b"") for each in self.read(self.triggers)]
        return [each for each in sent if each["workflow_run_id"] == run_id]

    def assert_answered(self, run: Run, answer: Any) -> str:
        """Check that the task has the answer of its one trigger, and that no other is in the topic; returns its ID."""
        assert run.state == "success", errors[-1:]
        (trigger,) = self.triggers_of(run.id)
        event_id: str = trigger["event_id"]
        published = self.results(event_id)[event_id]
        assert run.xcom() == published["result"]
        assert published["result"]["answer"] == answer
        told = run.xcom(key="workflow_event")
        assert (told["correlation_id"], told["event_id"]) == (event_id, published["event_id"])
        return event_id


@pytest.fixture(scope="module", name="parts")
def parts_fixture() -> Iterator[Loop]:
    kafka = PromptKafka()
    airflow_home.connect("kafka_default", kafka.addr)
    with tempfile.TemporaryDirectory(prefix="wr") as directory:
        made = Loop(kafka, Path(directory))
        yield made
        made.close()
    hub._stop_all()  # else they would tell of the broker that ends now
    kafka.close()


@pytest.fixture(name="loop")
def loop_fixture(parts: Loop) -> Loop:
    parts.put_up()
    eventually(lambda: not waiting(RESULTS_TOPIC))  # the wait of the test before may be about to leave
    return parts


@pytest.fixture(name="deferrals")
def deferrals_fixture(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The events with which tasks came back from their deferrals."""
    from workflow_results.airflow import TriggerWorkflowOperator

    noted: list[dict[str, Any]] = []
    complete = TriggerWorkflowOperator.execute_complete

    def noting(self: Any, context: Any, event: dict[str, Any]) -> Any:
        noted.append(event)
        return complete(self, context, event)

    monkeypatch.setattr(TriggerWorkflowOperator, "execute_complete", noting)
    return noted


def test_a_crowd_shares_a_hub_and_each_gets_its_own(loop: Loop) -> None:
    """As in a triggerer: the operators have deferred, their triggers are serialised, and wait in one event loop.

    The agent starts when all of them wait.
    """
    from airflow.sdk.exceptions import TaskDeferred

    from workflow_results.airflow import TriggerWorkflowOperator, WorkflowResultHook

    loop.kill_agent()

    def trigger(n: int) -> Any:
        operator = TriggerWorkflowOperator(
            task_id="ask", workflow_id=WORKFLOW, payload={"do": "echo", "n": n}, deferrable=True, defer_after=0,
            timeout=120,
        )  # fmt: skip
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(context(None, map_index=n))
        return over_the_database(deferred.value.trigger)

    with ThreadPoolExecutor(8) as pool:
        triggers = list(pool.map(trigger, range(CROWD)))
    ids = [each.correlation_id for each in triggers]
    eventually(lambda: not waiting(loop.results_topic))  # those of the workers have left

    async def events(of: Any) -> list[Any]:
        return [event.payload async for event in of.run()]

    async def crowd() -> list[list[Any]]:
        waits = asyncio.gather(*map(events, triggers))
        await asyncio.to_thread(eventually, lambda: sorted(waiting(loop.results_topic)) == sorted(ids))
        assert len(hubs(loop.results_topic)) == 1
        loop.start_agent()
        return await waits

    told = asyncio.run(crowd())
    found = loop.results(*ids)
    places = {(each.partition(), each.offset()): json.loads(each.value() or b"") for each in loop.read(RESULTS_TOPIC)}
    for n, (event_id, payloads) in enumerate(zip(ids, told, strict=True)):
        (payload,) = payloads
        assert (payload["status"], payload["correlation_id"]) == ("found", event_id)
        place = payload["reference"]["partition"], payload["reference"]["offset"]
        assert places[place] == found[event_id]
        assert found[event_id]["result"]["answer"] == n
        assert found[event_id]["workflow_run_id"] == event_id  # for want of another
    assert WorkflowResultHook().fetch(told[-1][0]["reference"]).result["answer"] == CROWD - 1
    assert {loop.runs(each) for each in ids} == {1}


@both_ways
def test_success(loop: Loop, dags: Any, way: str, deferrals: list[dict[str, Any]]) -> None:
    run = loop.run(dags[f"loop_patient_{way}"], do="echo", n=7)
    event_id = loop.assert_answered(run, 7)
    told = run.xcom(key="workflow_event")
    assert (told["status"], told["topic"], told["workflow_id"]) == ("success", RESULTS_TOPIC, WORKFLOW)
    assert told["workflow_run_id"] == run.id
    if way == "deferred":
        (event,) = deferrals
        assert (event["status"], event["reference"]["correlation_id"]) == ("found", event_id)
        assert event.keys() == {"correlation_id", "status", "reference"}  # not the result itself
    else:
        assert deferrals == []


@both_ways
@pytest.mark.parametrize(
    ("do", "kind", "told"),
    [
        ("fail", "WorkflowTaskFailed", "ended with status failure: no such order .* look at its result there"),
        ("break", "WorkflowTaskErrored", "ended with status error: ValueError: secret.* look at the workflow's own"),
    ],
)
def test_workflow_that_ends_badly(loop: Loop, dags: Any, way: str, do: str, kind: str, told: str) -> None:
    run = loop.run(dags[f"loop_patient_{way}"], do=do, n=7)
    assert run.state == "failed"
    (trigger,) = loop.triggers_of(run.id)
    assert type(errors[-1]).__name__ == kind
    assert re.search(f"workflow {WORKFLOW}, run {re.escape(run.id)}, {told}", str(errors[-1]))
    assert trigger["event_id"] in str(errors[-1])
    event = run.xcom(key="workflow_event")
    assert event["error"] in str(errors[-1])
    assert event["correlation_id"] == trigger["event_id"]
    assert errors[-1].result.result == ({"n": 7} if do == "fail" else {})  # type: ignore[attr-defined]
    assert run.xcom() is None


@both_ways
def test_timeout(loop: Loop, dags: Any, way: str) -> None:
    gate = loop.gate()
    run = loop.run(dags[f"loop_impatient_{way}"], do="gate", gate=gate)
    release(gate)
    assert run.state == "failed"
    (trigger,) = loop.triggers_of(run.id)
    assert type(errors[-1]).__name__ == "WorkflowTimedOut"
    what_to_do = f"Look whether an agent reads topic {TRIGGERS_TOPIC} and what became of the workflow; a retry waits"
    for part in (
        f"workflow {WORKFLOW}",
        "within 1 s",
        trigger["event_id"],
        RESULTS_TOPIC,
        "without any trouble",
        what_to_do,
    ):
        assert part in str(errors[-1])


@both_ways
def test_result_before_the_wait(loop: Loop, dags: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflow_results.airflow import WorkflowResultHook

    publish = WorkflowResultHook.publish

    def publish_and_see_it_answered(self: Any, *args: Any) -> Any:
        event = publish(self, *args)
        loop.results(str(event.event_id))
        return event

    monkeypatch.setattr(WorkflowResultHook, "publish", publish_and_see_it_answered)
    loop.assert_answered(loop.run(dags[f"loop_patient_{way}"], do="echo", n=7), 7)


@both_ways
def test_foreign_results_in_between(loop: Loop, dags: Any, way: str) -> None:
    gate = loop.gate()

    def story() -> None:
        held = hold(gate)
        loop.awaited()
        (reads,) = hubs(loop.results_topic)
        before = reads.records
        foreign = [result(uuid4(), n, workflow_id=WORKFLOW) for n in range(10_000)]
        loop.kafka.publish(loop.results_topic, *foreign)
        eventually(lambda: reads.records >= before + len(foreign))
        os.close(held)

    loop.assert_answered(loop.run(dags[f"loop_patient_{way}"], story, do="gate", gate=gate, n=7), 7)


@both_ways
def test_interrupted_then_resumed(loop: Loop, dags: Any, way: str) -> None:
    def story() -> None:
        event_id = loop.awaited()
        assert loop.running is not None
        loop.running.await_log("waits for `resume`", event_id)
        assert loop.client.list(correlation_id=event_id) == []
        assert loop.awaited() == event_id
        resumed = loop.resume(event_id, "--value", '{"approved": true}')
        assert resumed.returncode == 0, resumed.stderr

    loop.assert_answered(loop.run(dags[f"loop_patient_{way}"], story, do="interrupt"), {"approved": True})


@both_ways
def test_retry_waits_for_the_run_that_the_first_try_began(loop: Loop, dags: Any, way: str) -> None:
    gate = loop.gate()
    before = len(errors)

    def story() -> None:
        held = hold(gate)
        event_id = loop.awaited()
        eventually(lambda: len(errors) > before)  # the first try has timed out
        assert loop.awaited() == event_id
        os.close(held)

    run = loop.run(dags[f"loop_retried_{way}"], story, do="gate", gate=gate, n=7)
    event_id = loop.assert_answered(run, 7)
    assert run.tasks()["ask", -1].try_number >= 2
    assert {type(each).__name__ for each in errors[before:]} == {"WorkflowTimedOut"}
    assert loop.runs(event_id) == loop.runs(event_id, "work") == 1


def test_agent_killed_in_mid_run(loop: Loop, dags: Any) -> None:
    gate = loop.gate()

    def story() -> None:
        held = hold(gate)
        event_id = loop.awaited()
        loop.await_checkpoint(event_id, "work")
        loop.kill_agent()
        os.close(held)
        loop.start_agent().await_log("goes on from its checkpoint", event_id, "next=work")
        release(gate)

    run = loop.run(dags["loop_patient_poll"], story, do="gate", gate=gate, n=7)
    event_id = loop.assert_answered(run, 7)
    assert (loop.runs(event_id), loop.runs(event_id, "work")) == (1, 2)


def test_sidecar_killed_in_mid_run(loop: Loop, dags: Any) -> None:
    """The graph ends while the sidecar is away."""
    gate = loop.gate()

    def story() -> None:
        held = hold(gate)
        loop.awaited()
        loop.kill_sidecar()
        assert loop.running is not None
        told = sum("the sidecar does not answer" in line for line in loop.running.lines)
        os.close(held)
        loop.running.await_log("the sidecar does not answer", count=told + 1)
        loop.start_sidecar()

    event_id = loop.assert_answered(loop.run(dags["loop_patient_deferred"], story, do="gate", gate=gate, n=7), 7)
    assert loop.runs(event_id, "work") == 1


def test_sidecar_killed_after_its_answer_and_before_publication(loop: Loop, dags: Any) -> None:
    """Kafka is away, so that the result stays in the outbox; the agent has been answered."""
    gate = loop.gate()

    def story() -> None:
        held = hold(gate)
        event_id = loop.awaited()
        loop.kafka.stop()
        os.close(held)
        assert loop.running is not None
        loop.running.await_log("the run is settled", event_id)
        assert loop.client.status()["outbox"]["pending"] == 1
        loop.kill_sidecar()
        loop.start_sidecar()
        # It is the outbox that keeps it: the agent, too, would bring it back, from its checkpoint.
        assert loop.client.status()["outbox"]["pending"] == 1
        loop.kafka.start()

    event_id = loop.assert_answered(loop.run(dags["loop_patient_poll"], story, do="gate", gate=gate, n=7), 7)
    assert loop.runs(event_id, "work") == 1


@both_ways
def test_broker_killed_during_the_wait(loop: Loop, dags: Any, way: str) -> None:
    gate = loop.gate()

    def story() -> None:
        held = hold(gate)
        loop.awaited()
        loop.kafka.stop()
        loop.kafka.start()
        os.close(held)

    loop.assert_answered(loop.run(dags[f"loop_patient_{way}"], story, do="gate", gate=gate, n=7), 7)
