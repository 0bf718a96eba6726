from __future__ import annotations

import pytest
from agent_world import World, world_fixture  # noqa: F401

from workflow_results.langgraph import result_event_id

# What becomes of a run.


@pytest.mark.parametrize("graph", ["graph", "agraph"])
def test_each_end_of_a_run_is_published(world: World, graph: str) -> None:
    agent = world.agent(graph)
    ends = ("echo", "fail", "break", "exit", "stop", "interrupt", "unwritable")
    sent = {do: world.trigger(do=do, n=1) for do in ends}
    found = world.results(*sent.values())
    told = {do: (found[event_id]["status"], found[event_id]["error"]) for do, event_id in sent.items()}
    assert told["echo"] == ("success", None)
    assert told["fail"] == ("failure", "no such order")
    assert told["break"] == ("error", "ValueError: secret-of-the-payload")
    assert told["exit"] == ("error", "SystemExit: 7")
    assert told["stop"] == ("error", "Stop")
    assert told["interrupt"][0] == "error"
    assert "no checkpointer" in told["interrupt"][1]
    assert told["unwritable"][0] == "error"
    assert "could not be handed over" in told["unwritable"][1]
    echo = found[sent["echo"]]
    assert echo["event_id"] == result_event_id(sent["echo"], "w")
    assert (echo["workflow_id"], echo["workflow_run_id"], echo["result"]["answer"]) == ("w", "r", 1)
    world.await_committed(7)
    assert not any("secret-of-the-payload" in line for line in agent.lines)
    agent.await_log("the agent starts", "mode=threads" if graph == "graph" else "mode=loop")


def test_answered_trigger_is_not_run_again(world: World) -> None:
    answered = world.trigger(n=1)
    world.client.publish(
        correlation_id=answered, workflow_id="w", workflow_run_id="r", result={},
        event_id=result_event_id(answered, "w"),
    )  # fmt: skip
    other = world.trigger(n=2)
    world.agent()
    world.results(answered, other)
    world.await_committed(2)
    assert world.runs(answered) == 0
    assert world.runs(other) == 1


def test_trigger_of_another_workflow_is_left_out_and_committed(world: World) -> None:
    world.agent("graph", "--workflow-id", "w", "--workflow-id", "v")
    left_out = world.trigger(workflow_id="x")
    taken = [world.trigger(workflow_id="v"), world.trigger(workflow_id="w")]
    found = world.results(*taken)
    world.await_committed(3)
    assert found.keys() == set(taken)
    assert world.runs(left_out) == 0
