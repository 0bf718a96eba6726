"""Interrupts: the run waits in its checkpointer, and `resume` goes on with it."""

from __future__ import annotations

import json

import pytest
from agent_world import QUICK, World, release, world_fixture  # noqa: F401


def test_interrupted_then_resumed_by_another_process(world: World) -> None:
    agent = world.agent("durable")
    event_id = world.trigger(do="interrupt")
    agent.await_log("waits for `resume`", event_id)
    world.await_committed(1)
    assert world.client.list(correlation_id=event_id) == []
    agent.process.terminate()
    assert agent.wait() == 0

    refused = world.resume(event_id)
    assert (refused.returncode, "give --value" in refused.stderr) == (1, True), refused.stderr
    done = world.resume(event_id, "--value", '{"approved": true}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "success"
    found = world.results(event_id)[event_id]
    assert found["result"]["answer"] == {"approved": True}
    assert (found["workflow_id"], found["workflow_run_id"]) == ("w", "r")
    again = world.resume(event_id, "--value", "1")
    assert (again.returncode, "answered already" in again.stderr) == (1, True), again.stderr
    assert world.runs(event_id) == 1


def test_resume_without_a_sidecar_runs_nothing(world: World) -> None:
    agent = world.agent("durable")
    event_id = world.trigger(do="interrupt")
    agent.await_log("waits for `resume`", event_id)
    world.stop_sidecar()
    refused = world.resume(event_id, "--value", "1")
    assert (refused.returncode, "Is it running" in refused.stderr) == (1, True), refused.stderr
    assert world.runs(event_id, "work") == 1
    world.start_sidecar()
    assert world.resume(event_id, "--value", "1").returncode == 0
    assert world.results(event_id)[event_id]["result"]["answer"] == 1


def test_an_id_that_is_none_is_told(world: World) -> None:
    wrong = world.resume("run-1")
    assert (wrong.returncode, "'run-1' is no UUID" in wrong.stderr) == (2, True), wrong.stderr


def test_an_interrupted_trigger_that_is_read_again_is_not_run_again(world: World) -> None:
    first = world.agent("durable", kafka=QUICK)
    held = world.trigger(do="gate", gate=world.gate())  # it keeps the offsets behind it from being committed
    event_id = world.trigger(do="interrupt")
    first.await_log("waits for `resume`", event_id)
    first.kill()
    second = world.agent("durable")
    second.await_log("waits for `resume`", event_id)
    assert world.runs(event_id) == 1
    assert world.runs(event_id, "work") == 1
    assert world.client.list(correlation_id=held) == []


def test_a_killed_run_goes_on_from_its_checkpoint(world: World) -> None:
    first, gate = world.agent("durable", kafka=QUICK), world.gate()
    event_id = world.trigger(do="gate", gate=gate, n=5)
    first.await_log("the run begins")
    world.await_run(event_id, "work")
    world.await_checkpoint(event_id, "work")
    first.kill()
    second = world.agent("durable")
    second.await_log("goes on from its checkpoint", "next=work")
    release(gate)
    assert world.results(event_id)[event_id]["result"]["answer"] == 5
    assert world.runs(event_id) == 1  # its first node
    assert world.runs(event_id, "work") == 2


def test_a_breakpoint_is_passed_by_resume_alone(world: World) -> None:
    agent = world.agent("breakpoint_before_work")
    event_id = world.trigger(n=3)
    agent.await_log("waits for `resume`", event_id)
    world.await_committed(1)
    refused = world.resume(event_id, "--value", "1", graph="breakpoint_before_work")
    assert (refused.returncode, "leave out --value" in refused.stderr) == (1, True), refused.stderr
    done = world.resume(event_id, graph="breakpoint_before_work")
    assert done.returncode == 0, done.stderr
    assert world.results(event_id)[event_id]["result"]["answer"] == 3


@pytest.mark.parametrize("graph", ["durable", "graph"])
def test_nothing_to_resume(world: World, graph: str) -> None:
    done = world.resume("0192f0c1-2b7e-7c3a-9d54-5f2a1b6c7d8e", "--value", "1", graph=graph)
    assert done.returncode == 1
    assert ("no run of" if graph == "durable" else "no checkpointer") in done.stderr


def test_a_graph_made_in_the_loop_runs_there(world: World) -> None:
    agent = world.agent("made_in_loop")
    event_id = world.trigger(n=4)
    assert world.results(event_id)[event_id]["result"]["answer"] == 4
    agent.await_log("the agent starts", "mode=loop", "checkpointer=InMemorySaver")
    agent.await_log("forgets with this process")
