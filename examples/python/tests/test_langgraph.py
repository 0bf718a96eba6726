"""Real graphs, and the real sidecar: what is held for a correlation ID after each way to end."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID, uuid4

import pytest
from binary import sidecar_binary
from conftest import Sidecar
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import RunControl
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from workflow_results import ResultRejected, ResultTooLarge, SidecarClient, SidecarUnavailable
from workflow_results.aio import AsyncSidecarClient
from workflow_results.langgraph import (
    ResultCallbackHandler,
    RunOutcome,
    WorkflowFailure,
    arun_and_publish,
    publish_result,
    result_event_id,
    run_and_publish,
)


class State(TypedDict, total=False):
    total: int
    answer: Any
    receipt: dict[str, Any]


def pay(state: State) -> State:
    return {"total": state.get("total", 0) + 1}


def build(*nodes: Callable[..., Any], **compile_with: Any) -> Any:
    """Compile a graph of these nodes in a row, named ``n0``, ``n1``, …"""
    graph = StateGraph(State)
    names = [START, *(f"n{i}" for i in range(len(nodes))), END]
    for name, node in zip(names[1:], nodes, strict=False):
        graph.add_node(name, node)
    for one, another in itertools.pairwise(names):
        graph.add_edge(one, another)
    return graph.compile(**compile_with)


def ask(state: State) -> State:
    return {"answer": interrupt("may it be paid?")}


def breaks(state: State) -> State:
    raise KeyError("no such order")


def declines(state: State) -> State:
    raise WorkflowFailure("the limit is exceeded", {"limit": 10})


def thread() -> RunnableConfig:
    return {"configurable": {"thread_id": str(uuid4())}}


@dataclass
class Sent:
    """What the sidecar holds for one correlation ID."""

    client: SidecarClient
    correlation_id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def about(self) -> dict[str, Any]:
        return {"correlation_id": self.correlation_id, "workflow_id": "review"}

    def held(self) -> list[dict[str, Any]]:
        return self.client.list(correlation_id=self.correlation_id)

    def statuses(self) -> list[str]:
        return [entry["status"] for entry in self.held()]

    def published(self, sidecar: Sidecar) -> dict[str, Any]:
        """Read the one result as whoever waits for it does: from Kafka."""
        return await_result(sidecar, self.correlation_id)


def await_result(sidecar: Sidecar, correlation_id: str) -> dict[str, Any]:
    waited = subprocess.run(
        [
            sidecar_binary(), "await", "--brokers", sidecar.broker, "--since", "1h", "--timeout", "20s",
            "--correlation-id", correlation_id,
        ],
        capture_output=True,
    )  # fmt: skip
    found = json.loads(waited.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def sent(client: SidecarClient) -> Sent:
    return Sent(client)


class Runner:
    """Runs a graph by one of the two functions; ``publish`` is what the test calls."""

    def __init__(self, path: str, asynchronous: bool, deadline: float = 10) -> None:
        self._path = path
        self.asynchronous = asynchronous
        self._deadline = deadline

    def __call__(self, graph: Any, *args: Any, **kwargs: Any) -> RunOutcome:
        if not self.asynchronous:
            with SidecarClient(self._path, deadline=self._deadline) as client:
                return run_and_publish(graph, *args, client=client, **kwargs)

        async def run() -> RunOutcome:
            async with AsyncSidecarClient(self._path, deadline=self._deadline) as client:
                return await arun_and_publish(graph, *args, client=client, **kwargs)

        return asyncio.run(run())


@pytest.fixture(params=[False, True], ids=["invoke", "ainvoke"])
def run(request: pytest.FixtureRequest, sidecar: Sidecar) -> Runner:
    return Runner(sidecar.socket, request.param)


# run_and_publish and arun_and_publish.


def test_success(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    outcome = run(build(pay), {"total": 1}, **sent.about, workflow_run_id="run-7")
    assert (outcome.output, outcome.interrupted, outcome.status) == ({"total": 2}, False, "success")
    assert outcome.receipt is not None
    assert not outcome.receipt.duplicate
    event = sent.published(sidecar)
    assert (event["status"], event["result"], event["error"]) == ("success", {"total": 2}, None)
    assert (event["workflow_id"], event["workflow_run_id"]) == ("review", "run-7")
    assert event["event_id"] == outcome.receipt.event_id == result_event_id(sent.correlation_id, "review")
    assert len(sent.held()) == 1


def test_select_picks_the_result(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    outcome = run(build(pay), {"total": 1}, **sent.about, select=lambda state: {"paid": state["total"]})
    assert outcome.output == {"total": 2}
    assert sent.published(sidecar)["result"] == {"paid": 2}


def test_failure_by_a_function_of_the_state(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    outcome = run(build(pay), {}, **sent.about, failure=lambda state: "too little" if state["total"] < 5 else None)
    assert outcome.status == "failure"
    event = sent.published(sidecar)
    assert (event["status"], event["result"], event["error"]) == ("failure", {"total": 1}, "too little")


def test_no_failure_by_a_function_of_the_state(run: Runner, sent: Sent) -> None:
    run(build(pay), {"total": 9}, **sent.about, failure=lambda state: "too little" if state["total"] < 5 else None)
    assert sent.statuses() == ["success"]


def test_failure_by_exception_is_returned(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    outcome = run(build(pay, declines, pay), {}, **sent.about)
    assert (outcome.output, outcome.status, outcome.interrupted) == ({"limit": 10}, "failure", False)
    event = sent.published(sidecar)
    assert (event["status"], event["result"], event["error"]) == ("failure", {"limit": 10}, "the limit is exceeded")


def test_an_exception_is_published_and_raised(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    with pytest.raises(KeyError, match="no such order"):
        run(build(pay, breaks), {}, **sent.about)
    event = sent.published(sidecar)
    assert (event["status"], event["result"], event["error"]) == ("error", {}, "KeyError: 'no such order'")


def test_an_exception_in_select_is_published_and_raised(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    with pytest.raises(KeyError):
        run(build(pay), {}, **sent.about, select=lambda state: state["missing"])
    assert sent.published(sidecar)["error"] == "KeyError: 'missing'"


def test_a_failure_that_is_no_reason_is_an_error(run: Runner, sent: Sent) -> None:
    with pytest.raises(TypeError, match="must return why"):
        run(build(pay), {}, **sent.about, failure=lambda state: False)
    assert sent.statuses() == ["error"]


def test_recursion_limit(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    graph = StateGraph(State)
    graph.add_node("pay", pay)
    graph.add_edge(START, "pay")
    graph.add_edge("pay", "pay")
    with pytest.raises(GraphRecursionError):
        run(graph.compile(), {}, {"recursion_limit": 5}, **sent.about)
    assert sent.published(sidecar)["error"].startswith("GraphRecursionError: Recursion limit of 5 reached")


def test_interrupt_then_resume(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    graph, config = build(pay, ask, checkpointer=InMemorySaver()), thread()
    paused = run(graph, {}, config, **sent.about)
    assert (paused.interrupted, paused.receipt, paused.status) == (True, None, None)
    assert sent.held() == []
    resumed = run(graph, Command(resume="yes"), config, **sent.about)
    assert not resumed.interrupted
    assert resumed.receipt is not None
    event = sent.published(sidecar)
    assert event["result"] == {"total": 1, "answer": "yes"}
    assert event["workflow_run_id"] == config["configurable"]["thread_id"]
    again = run(graph, None, config, **sent.about)  # a run that has ended, ends again
    assert again.receipt is not None
    assert (again.receipt.duplicate, again.receipt.seq) == (True, resumed.receipt.seq)
    assert len(sent.held()) == 1


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("where", [{"interrupt_before": ["n1"]}, {"interrupt_after": ["n0"]}])
def test_breakpoint_then_resume(run: Runner, sent: Sent, where: dict[str, Any], version: str) -> None:
    graph, config = build(pay, pay, checkpointer=InMemorySaver(), **where), thread()
    assert run(graph, {}, config, **sent.about, version=version).interrupted
    assert sent.held() == []
    assert run(graph, None, config, **sent.about, version=version).status == "success"
    assert sent.statuses() == ["success"]


def test_a_breakpoint_after_the_last_node(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    """Nothing comes next, and yet it is interrupted."""
    graph, config = build(pay, checkpointer=InMemorySaver(), interrupt_after=["n0"]), thread()
    assert run(graph, {}, config, **sent.about).interrupted
    assert run(graph, None, config, **sent.about).status == "success"
    assert sent.published(sidecar)["result"] == {"total": 1}


class Elsewhere:
    """A graph that runs in another process, as far as its caller can see: no handler is called back."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def _without(self, config: RunnableConfig) -> RunnableConfig:
        return {"configurable": config.get("configurable", {})}

    def invoke(self, input: Any, config: RunnableConfig) -> Any:
        return self.graph.invoke(input, self._without(config))

    async def ainvoke(self, input: Any, config: RunnableConfig) -> Any:
        return await self.graph.ainvoke(input, self._without(config))

    def get_state(self, config: RunnableConfig) -> Any:
        return self.graph.get_state(self._without(config))

    async def aget_state(self, config: RunnableConfig) -> Any:
        return await self.graph.aget_state(self._without(config))


@pytest.mark.parametrize("wrap", [lambda graph: graph, Elsewhere], ids=["here", "elsewhere"])
def test_a_run_from_an_older_checkpoint_is_no_interrupt(run: Runner, sent: Sent, wrap: Callable[[Any], Any]) -> None:
    graph, config = build(pay, pay, checkpointer=InMemorySaver()), thread()
    graph.invoke({}, config)
    older = next(state.config for state in graph.get_state_history(config) if state.next == ("n1",))
    assert run(wrap(graph), None, older, **sent.about).status == "success"


def test_an_interrupt_that_nobody_can_resume_is_told(run: Runner, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    assert run(build(ask), {}, **sent.about).interrupted
    assert "no checkpointer" in caplog.text
    assert str(sent.about["correlation_id"]) in caplog.text
    caplog.clear()
    assert run(build(ask, checkpointer=InMemorySaver()), {}, thread(), **sent.about).interrupted
    assert caplog.text == ""


def test_a_thread_without_a_checkpointer(run: Runner, sent: Sent) -> None:
    assert run(build(pay), {}, thread(), **sent.about).status == "success"


@pytest.mark.parametrize("nodes", [(pay, ask), (pay, pay)], ids=["interrupt", "breakpoint"])
def test_a_graph_that_calls_no_handler_is_asked(run: Runner, sent: Sent, nodes: Any) -> None:
    breakpoint_at = {"interrupt_before": ["n1"]} if nodes[1] is pay else {}
    graph, config = Elsewhere(build(*nodes, checkpointer=InMemorySaver(), **breakpoint_at)), thread()
    assert run(graph, {}, config, **sent.about).interrupted
    assert sent.held() == []
    assert run(graph, Command(resume="yes") if nodes[1] is ask else None, config, **sent.about).status == "success"
    assert sent.statuses() == ["success"]


def test_a_graph_that_calls_no_handler_and_has_no_thread(run: Runner, sent: Sent) -> None:
    assert run(Elsewhere(build(pay)), {}, **sent.about).status == "success"


def test_a_drained_run_can_be_resumed(run: Runner, sent: Sent) -> None:
    control = RunControl()

    def drain(state: State) -> State:
        control.request_drain("shutdown")
        return {}

    graph, config = build(drain, pay, checkpointer=InMemorySaver()), thread()
    with pytest.raises(GraphDrained):
        run(graph, {}, config, **sent.about, control=control)
    assert sent.held() == []
    assert run(graph, None, config, **sent.about).status == "success"


@pytest.mark.parametrize("checkpointer", [None, True], ids=["inherited", "its own"])
def test_a_subgraph_is_a_part(run: Runner, sent: Sent, sidecar: Sidecar, checkpointer: Any) -> None:
    inner = build(pay, ask, checkpointer=checkpointer)
    graph, config = build(pay, inner, pay, checkpointer=InMemorySaver()), thread()
    assert run(graph, {}, config, **sent.about).interrupted
    assert sent.held() == []
    assert run(graph, Command(resume="yes"), config, **sent.about).status == "success"
    assert sent.published(sidecar)["result"] == {"total": 3, "answer": "yes"}
    assert len(sent.held()) == 1


def test_an_interrupt_of_another_graph_is_not_ours(run: Runner, sent: Sent) -> None:
    """A node runs a graph on a thread of its own, which pauses; the outer run goes on to its end."""
    other = build(ask, checkpointer=InMemorySaver())

    def start_other(state: State) -> State:
        other.invoke({}, thread())
        return {"total": 5}

    assert run(build(start_other), {}, **sent.about).status == "success"


def test_publishing_within_a_node(sent: Sent, sidecar: Sidecar) -> None:
    """A part that publishes for itself, within a graph: its interrupt is the outer one's as well."""
    inner = build(pay, ask)
    outcomes = []

    def part(state: State, config: RunnableConfig) -> State:
        outcomes.append(run_and_publish(inner, {}, client=sent.client, **sent.about))
        return {"total": 7}

    graph, config = build(part, checkpointer=InMemorySaver()), thread()
    assert "__interrupt__" in graph.invoke({}, config)
    assert (sent.held(), outcomes) == ([], [])
    assert graph.invoke(Command(resume="yes"), config) == {"total": 7}
    assert sent.published(sidecar)["result"] == {"total": 1, "answer": "yes"}


def test_cancelled_publishes_nothing(sidecar: Sidecar, sent: Sent) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def waits(state: State) -> State:
            begun.set()
            await asyncio.Event().wait()
            return {}

        async with AsyncSidecarClient(sidecar.socket) as client:
            task = asyncio.create_task(arun_and_publish(build(waits), {}, client=client, **sent.about))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert sent.held() == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_publishes_nothing(sent: Sent, kind: type[BaseException]) -> None:
    def stop(state: State) -> State:
        raise kind

    with pytest.raises(kind):
        run_and_publish(build(stop), {}, client=sent.client, **sent.about)
    assert sent.held() == []


def test_not_serialisable(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    with pytest.raises(TypeError, match=r"cannot write a object as JSON.*result\.answer"):
        run(build(lambda state: {"answer": object()}), {}, **sent.about)
    event = sent.published(sidecar)
    assert event["status"] == "error"
    assert event["error"].startswith("the result could not be handed over: TypeError: cannot write a object")
    assert event["event_id"] == result_event_id(sent.correlation_id, "review")


@pytest.mark.parametrize("answer", [float("nan"), "\ud800"], ids=["NaN", "half a surrogate pair"])
def test_no_json(run: Runner, sent: Sent, answer: Any) -> None:
    with pytest.raises(ValueError, match=r"Out of range|surrogates not allowed"):
        run(build(lambda state: {"answer": answer}), {}, **sent.about)
    assert sent.statuses() == ["error"]


class Unwritable:
    def model_dump(self, mode: str) -> Any:
        raise RuntimeError("boom")


def test_what_raises_while_it_is_written(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    with pytest.raises(ValueError, match=r"RuntimeError: boom \(at \.result\.answer"):
        run(build(lambda state: {"answer": Unwritable()}), {}, **sent.about)
    error = sent.published(sidecar)["error"]
    assert error.startswith("the result could not be handed over: ValueError: cannot write a Unwritable as JSON")


def test_too_large(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    with pytest.raises(ResultTooLarge):
        run(build(lambda state: {"answer": "x" * 2_000_000}), {}, **sent.about)
    error = sent.published(sidecar)["error"]
    assert error.startswith("the result could not be handed over: ResultTooLarge: 413")
    assert len(error) < 500


def test_no_object(run: Runner, sent: Sent) -> None:
    with pytest.raises(ResultRejected) as caught:
        run(build(pay), {}, **sent.about, select=lambda state: state["total"])
    assert set(caught.value.fields) == {"result"}
    assert sent.statuses() == ["error"]


def test_too_deep(run: Runner, sent: Sent) -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"x": deep}
    with pytest.raises(ResultRejected, match="400"):
        run(build(lambda state: {"answer": deep}), {}, **sent.about)
    assert sent.statuses() == ["error"]


def test_a_message_of_any_size_and_kind_is_an_error(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    def shouts(state: State) -> State:
        raise RuntimeError("\ud800" + "x" * 2_000_000)

    with pytest.raises(RuntimeError):
        run(build(shouts), {}, **sent.about)
    error = sent.published(sidecar)["error"]
    assert error.startswith("RuntimeError: \\ud800xxx")
    assert error.endswith("… (2000015 characters in all)")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("boom")


def test_an_error_whose_message_cannot_be_made(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    def breaks(state: State) -> State:
        raise Unspeakable

    with pytest.raises(Unspeakable):
        run(build(breaks), {}, **sent.about)
    assert sent.published(sidecar)["error"] == "Unspeakable: its message could not be made (RuntimeError)"


def test_the_first_result_stands(run: Runner, sent: Sent, sidecar: Sidecar, caplog: pytest.LogCaptureFixture) -> None:
    first = run(build(pay), {"total": 1}, **sent.about, workflow_run_id="one").receipt
    with caplog.at_level(logging.WARNING, "workflow_results"):
        outcome = run(build(pay), {"total": 424242}, **sent.about, workflow_run_id="two")
    assert first is not None
    assert outcome.receipt is not None
    assert outcome.output == {"total": 424243}
    assert (outcome.receipt.duplicate, outcome.receipt.seq) == (True, first.seq)
    (record,) = caplog.records
    for part in (sent.correlation_id, first.event_id, "run one", "run two"):
        assert part in record.getMessage()
    assert "42424" not in record.getMessage()
    assert sent.published(sidecar)["result"] == {"total": 2}
    assert len(sent.held()) == 1


def test_the_same_run_again_is_a_duplicate(run: Runner, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    again = [run(build(pay), {"total": 1}, **sent.about, workflow_run_id="one").receipt for _ in range(2)]
    assert [receipt.duplicate for receipt in again if receipt] == [False, True]
    assert caplog.records == []


def test_an_error_after_a_success_is_raised_and_not_published(run: Runner, sent: Sent) -> None:
    run(build(pay), {}, **sent.about)
    with pytest.raises(KeyError):
        run(build(breaks), {}, **sent.about)
    with pytest.raises(TypeError):
        run(build(lambda state: {"answer": object()}), {}, **sent.about)
    assert sent.statuses() == ["success"]


def test_a_generation_publishes_anew(run: Runner, sent: Sent) -> None:
    with pytest.raises(KeyError):
        run(build(breaks), {}, **sent.about)
    outcome = run(build(pay), {}, **sent.about, generation=1)
    assert outcome.receipt is not None
    assert not outcome.receipt.duplicate
    assert sent.statuses() == ["error", "success"]


def test_event_ids() -> None:
    one = result_event_id("0192F0C1-2B7E-7C3A-9D54-5F2A1B6C7D8E", "invoice")
    assert one == "51864a3b-7865-5d09-b038-5320053fb3de"  # as it was ever derived
    assert one == result_event_id(UUID("0192f0c1-2b7e-7c3a-9d54-5f2a1b6c7d8e"), "invoice", 0)
    others = {result_event_id(uuid4(), "invoice"), result_event_id(uuid4(), "other"), one}
    assert len(others) == 3
    with pytest.raises(ValueError, match="must be a UUID"):
        result_event_id("nonsense", "invoice")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"correlation_id": "nonsense"}, "must be a UUID, not 'nonsense'"),
        ({"correlation_id": None}, "must be a UUID, not None"),
        ({"correlation_id": UUID(int=0)}, "nil UUID"),
        ({"workflow_id": ""}, "workflow_id must have 1 to 256 bytes, not 0"),
        ({"workflow_id": "ü" * 129}, "workflow_id must have 1 to 256 bytes, not 258"),
        ({"workflow_run_id": 7}, "workflow_run_id must be a str, not a int"),
        ({"stream_mode": "updates"}, "stream_mode cannot be given"),
    ],
)
def test_what_no_result_may_have_shows_before_the_graph_runs(
    run: Runner, sent: Sent, wrong: dict[str, Any], says: str
) -> None:
    def never(state: State) -> State:
        pytest.fail("the graph ran")

    with pytest.raises((TypeError, ValueError), match=says):
        run(build(never), {}, **{**sent.about, **wrong})


def test_the_sidecar_away(tmp_path: Path, sent: Sent) -> None:
    for asynchronous in (False, True):
        away = Runner(str(tmp_path / "nowhere"), asynchronous, deadline=0.3)
        with pytest.raises(SidecarUnavailable, match=result_event_id(sent.correlation_id, "review")):
            away(build(pay), {}, **sent.about)
        with pytest.raises(SidecarUnavailable) as caught:
            away(build(breaks), {}, **sent.about)
        assert "KeyError: 'no such order'" in "".join(traceback.format_exception(caught.value))


def test_each_function_takes_its_client(sidecar: Sidecar, sent: Sent) -> None:
    other = AsyncSidecarClient(sidecar.socket)
    with pytest.raises(TypeError, match="arun_and_publish takes the"):
        run_and_publish(build(pay), {}, client=other, **sent.about)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="would block the loop"):
        asyncio.run(arun_and_publish(build(pay), {}, client=sent.client, **sent.about))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a SidecarClient"):
        ResultCallbackHandler(other, workflow_id="w")  # type: ignore[arg-type]


def test_a_pydantic_state(run: Runner, sent: Sent, sidecar: Sidecar) -> None:
    class Order(BaseModel):
        total: int
        id: UUID

    graph = StateGraph(Order)
    graph.add_node("pay", lambda state: {"total": state.total + 1})
    graph.add_edge(START, "pay")
    order = Order(total=1, id=uuid4())
    outcome = run(graph.compile(), order, **sent.about, version="v2", select=lambda state: state)
    assert isinstance(outcome.output.value, Order)
    assert sent.published(sidecar)["result"] == {"total": 2, "id": str(order.id)}


def test_a_graph_of_the_functional_api(run: Runner, sent: Sent) -> None:
    @entrypoint()
    async def flow(order: int) -> dict[str, int]:
        return {"total": order}

    @entrypoint()
    def blocking(order: int) -> dict[str, int]:
        return {"total": order}

    assert run(flow if run.asynchronous else blocking, 3, **sent.about).output == {"total": 3}
    assert sent.statuses() == ["success"]


class Counter(BaseCallbackHandler):
    def __init__(self) -> None:
        self.ended = 0

    def on_chain_end(self, *args: Any, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        self.ended += parent_run_id is None


def test_the_callers_callbacks_go_on(run: Runner, sent: Sent) -> None:
    listed, managed, bound = Counter(), Counter(), Counter()
    graph = build(pay).with_config({"callbacks": [bound]})
    config: RunnableConfig = {"callbacks": [listed]}
    run(graph, {}, config, **sent.about)
    assert config == {"callbacks": [listed]}
    manager = CallbackManager([], [])
    manager.add_handler(managed)
    run(graph, {}, {"callbacks": manager}, **sent.about)
    assert len(manager.handlers) == 1
    assert (listed.ended, managed.ended, bound.ended) == (1, 1, 2)


# ResultCallbackHandler.

Way = Callable[[Any, Any, RunnableConfig], Any]


def by_invoke(graph: Any, input: Any, config: RunnableConfig) -> None:
    graph.invoke(input, config)


def by_stream(graph: Any, input: Any, config: RunnableConfig) -> None:
    for _ in graph.stream(input, config, stream_mode="updates"):
        pass


def by_ainvoke(graph: Any, input: Any, config: RunnableConfig) -> None:
    asyncio.run(graph.ainvoke(input, config))


def by_astream(graph: Any, input: Any, config: RunnableConfig) -> None:
    async def read() -> None:
        async for _ in graph.astream(input, config):
            pass

    asyncio.run(read())


def by_astream_events(graph: Any, input: Any, config: RunnableConfig) -> None:
    async def read() -> None:
        async for _ in graph.astream_events(input, config, version="v2"):
            pass

    asyncio.run(read())


@pytest.fixture(params=[by_invoke, by_stream, by_ainvoke, by_astream, by_astream_events])
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    return way


def handled(sent: Sent, config: RunnableConfig | None = None, **options: Any) -> RunnableConfig:
    handler = ResultCallbackHandler(sent.client, **{**sent.about, **options})
    return {**(config or {}), "callbacks": [handler]}


def test_handler_success(way: Way, sent: Sent, sidecar: Sidecar) -> None:
    way(build(pay, pay), {}, handled(sent, thread(), select=lambda state: {"paid": state["total"]}))
    event = sent.published(sidecar)
    assert (event["status"], event["result"]) == ("success", {"paid": 2})
    assert len(sent.held()) == 1


def test_handler_failure(way: Way, sent: Sent, sidecar: Sidecar) -> None:
    way(build(pay), {}, handled(sent, failure=lambda state: "too little"))
    assert sent.published(sidecar)["error"] == "too little"
    with pytest.raises(WorkflowFailure):
        way(build(declines), {}, handled(sent, generation=1))
    assert sent.statuses() == ["failure", "failure"]


def test_handler_exception(way: Way, sent: Sent, sidecar: Sidecar) -> None:
    with pytest.raises(KeyError):
        way(build(pay, breaks), {}, handled(sent))
    assert sent.published(sidecar)["error"] == "KeyError: 'no such order'"


def test_handler_interrupt_then_resume(way: Way, sent: Sent, sidecar: Sidecar) -> None:
    config = handled(sent, thread())
    graph = build(pay, ask, checkpointer=InMemorySaver(), interrupt_before=["n0"])
    way(graph, {}, config)
    way(graph, None, config)
    assert sent.held() == []
    way(graph, Command(resume="yes"), config)
    event = sent.published(sidecar)
    assert event["result"] == {"total": 1, "answer": "yes"}
    assert event["workflow_run_id"] == config["configurable"]["thread_id"]


def test_handler_sees_parts_as_parts(way: Way, sent: Sent, sidecar: Sidecar) -> None:
    """A subgraph, a graph called by a node, one called by a tool, one on a thread of its own."""
    inner = build(pay)
    paused = build(ask, checkpointer=InMemorySaver())

    @tool
    def pay_more(total: int) -> int:
        """Pay more."""
        return int(inner.invoke({"total": total})["total"])

    def calls(state: State, config: RunnableConfig) -> State:
        total = inner.invoke(RunnableLambda(lambda s: s).invoke(state, config), config)["total"]
        paused.invoke({}, thread())
        return {"total": pay_more.invoke({"total": total}, config) + 10}

    way(build(inner, calls), {}, handled(sent))
    assert sent.published(sidecar)["result"] == {"total": 13}
    assert len(sent.held()) == 1


def test_handler_on_a_part_of_a_traced_run(sent: Sent) -> None:
    """A run that began below one that the handler was not given to is a root to it."""
    outer = RunnableLambda(lambda x, config: build(pay).invoke({}, handled(sent)))
    outer.invoke(0, {"callbacks": [Counter()]})
    assert sent.statuses() == ["success"]


def test_handler_takes_what_outlives_a_run_as_a_part_of_it(sent: Sent) -> None:
    """A thread goes on after its run was cancelled, and calls a chain: that is no run of its own."""
    config, release = handled(sent), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        late = []

        def leaves_a_thread(state: State, config: RunnableConfig) -> State:
            def goes_on() -> int:
                assert release.wait(10)
                return RunnableLambda(lambda x: x).invoke(1, config)

            late.append(threads.submit(goes_on))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(leaves_a_thread).invoke({}, config)
        release.set()
        assert late[0].result(10) == 1
    assert sent.held() == []


def test_handler_keeps_no_more_than_some_runs(sent: Sent) -> None:
    config = handled(sent)
    (handler,) = config["callbacks"]  # type: ignore[misc]
    graph = build(pay)
    for _ in range(100):
        graph.invoke({}, config)
    assert len(handler._ended) == 64
    assert len(handler._root_of) < 64 * 4


def test_handler_stream_abandoned(sent: Sent) -> None:
    config = handled(sent)
    stream = build(pay, pay).stream({}, config)
    next(stream)
    stream.close()

    async def leave() -> None:
        stream = build(pay, pay).astream({}, config)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave())
    assert sent.held() == []


def test_handler_cancelled(sent: Sent) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def waits(state: State) -> State:
            begun.set()
            await asyncio.Event().wait()
            return {}

        task = asyncio.create_task(build(waits).ainvoke({}, handled(sent)))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sent.held() == []


def test_handler_drained(way: Way, sent: Sent) -> None:
    def drain(state: State, runtime: Any) -> State:
        raise GraphDrained("shutdown")

    with pytest.raises(GraphDrained):
        way(build(lambda state: drain(state, None)), {}, handled(sent))
    assert sent.held() == []


def test_handler_errors_reach_the_caller(
    way: Way, sent: Sent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SidecarClient(tmp_path / "nowhere", deadline=0.2) as away:
        handler = ResultCallbackHandler(away, **sent.about)
        with pytest.raises(SidecarUnavailable):
            way(build(pay), {}, {"callbacks": [handler]})
    with pytest.raises(ValueError, match="TypeError: cannot write a object"):
        way(build(lambda state: {"answer": object()}), {}, handled(sent))
    with pytest.raises(KeyError):
        way(build(pay), {}, handled(sent, generation=1, select=lambda state: state["missing"]))
    assert sent.statuses() == ["error", "error"]
    # LangGraph tells the handler of its own errors: they are no second result.
    assert [record for record in caplog.records if record.name == "workflow_results"] == []


def test_handler_without_a_correlation_id(way: Way, sent: Sent) -> None:
    def never(state: State) -> State:
        pytest.fail("the graph ran")

    with pytest.raises(ValueError, match="no correlation ID"):
        way(build(never), {}, handled(sent, correlation_id=None))


def test_handler_of_many_runs_at_once(client: SidecarClient) -> None:
    """Each run has its correlation ID in its metadata; half of them are interrupted."""
    handler = ResultCallbackHandler(client, workflow_id="review")
    barrier = threading.Barrier(8)

    def meet(state: State) -> State:
        barrier.wait(10)
        return {"total": state["total"] * 10}

    graph = build(meet, pay, checkpointer=InMemorySaver())
    ids = [str(uuid4()) for _ in range(8)]

    def one(i: int) -> None:
        config: RunnableConfig = {**thread(), "callbacks": [handler], "metadata": {"correlation_id": ids[i]}}
        graph.invoke({"total": i}, config, interrupt_before=["n1"] if i % 2 else [])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(8)))
    held = [client.list(correlation_id=i) for i in ids]
    assert [len(entries) for entries in held] == [1, 0] * 4
    assert [entry["status"] for entries in held for entry in entries] == ["success"] * 4


def test_handler_and_function_together_publish_once(run: Runner, sent: Sent) -> None:
    run(build(pay), {}, handled(sent), **sent.about)
    assert sent.statuses() == ["success"]


# publish_result.


@pytest.fixture(params=["blocking", "blocking, awaited", "asyncio"])
def node_run(request: pytest.FixtureRequest, sidecar: Sidecar) -> Callable[..., Any]:
    """Run a graph whose last nodes are made with the client of this kind."""

    def run(make: Callable[[Any], list[Callable[..., Any]]], config: RunnableConfig) -> Any:
        if request.param == "asyncio":

            async def main() -> Any:
                async with AsyncSidecarClient(sidecar.socket) as client:
                    return await build(*make(client)).ainvoke({}, config)

            return asyncio.run(main())
        with SidecarClient(sidecar.socket) as client:
            graph = build(*make(client))
            return graph.invoke({}, config) if request.param == "blocking" else asyncio.run(graph.ainvoke({}, config))

    return run


def test_node_publishes_the_state_at_its_place(node_run: Callable[..., Any], sent: Sent, sidecar: Sidecar) -> None:
    config: RunnableConfig = {"configurable": {"correlation_id": sent.correlation_id, "thread_id": "t-1"}}
    output = node_run(lambda client: [pay, publish_result(client, workflow_id="review"), pay], config)
    assert output == {"total": 2}
    event = sent.published(sidecar)
    assert (event["result"], event["workflow_run_id"]) == ({"total": 1}, "t-1")
    assert event["event_id"] == result_event_id(sent.correlation_id, "review")


def test_node_returns_the_receipt(node_run: Callable[..., Any], sent: Sent) -> None:
    def make(client: Any) -> list[Callable[..., Any]]:
        return [
            publish_result(
                client, **sent.about, workflow_run_id="r", generation=3, receipt_key="receipt",
                failure=lambda state: "declined", select=lambda state: {"x": 1},
            )
        ]  # fmt: skip

    output = node_run(make, {})
    (held,) = sent.held()
    assert (output["receipt"]["seq"], output["receipt"]["duplicate"]) == (held["seq"], False)
    assert (held["status"], held["workflow_run_id"]) == ("failure", "r")
    assert held["event_id"] == result_event_id(sent.correlation_id, "review", 3)


def test_node_finds_the_correlation_id(node_run: Callable[..., Any], sent: Sent) -> None:
    def find(state: State, config: RunnableConfig) -> str:
        return state["answer"] + config["configurable"]["rest"]

    first, rest = sent.correlation_id[:8], sent.correlation_id[8:]

    def make(client: Any) -> list[Callable[..., Any]]:
        return [lambda state: {"answer": first}, publish_result(client, workflow_id="review", correlation_id=find)]

    node_run(make, {"configurable": {"rest": rest}})
    assert sent.statuses() == ["success"]


def test_node_without_a_correlation_id(node_run: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="no correlation ID"):
        node_run(lambda client: [publish_result(client, workflow_id="review")], {})


def test_node_that_cannot_hand_over(node_run: Callable[..., Any], sent: Sent) -> None:
    with pytest.raises(ResultTooLarge):
        node_run(lambda client: [publish_result(client, **sent.about, select=lambda s: {"x": "x" * 2_000_000})], {})
    assert sent.statuses() == ["error"]


def test_node_and_function_together_publish_once(run: Runner, sent: Sent) -> None:
    """The node's result stands, whatever happens to the graph after it."""
    graph = build(pay, publish_result(sent.client, **sent.about), breaks)
    with pytest.raises(KeyError):
        run(graph, {}, **sent.about)
    assert sent.statuses() == ["success"]


# Without LangGraph.


def test_the_client_needs_no_langgraph() -> None:
    script = """
import sys
class Away:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("langgraph", "langchain_core", "pydantic"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Away())
import workflow_results, workflow_results.aio, workflow_results.result_producer
try:
    import workflow_results.langgraph
except ImportError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert 'pip install "workflow-results[langgraph]"' in done.stdout
