"""Running a graph to its end, and publishing its one result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.types import GraphOutput

from workflow_results._graph_answer import (
    Failure,
    RunOutcome,
    Select,
    WorkflowFailure,
    answer_to,
    failure_answer,
    judge,
    thread_of,
)
from workflow_results._handover import Identity, ahand_over, hand_over
from workflow_results.aio import AsyncSidecarClient
from workflow_results.client import SidecarClient

_log = logging.getLogger("workflow_results")


def run_and_publish(
    graph: Any,
    input: Any,
    config: RunnableConfig | None = None,
    *,
    client: SidecarClient,
    correlation_id: str | UUID,
    workflow_id: str,
    workflow_run_id: str | None = None,
    generation: int = 0,
    failure: Failure | None = None,
    select: Select | None = None,
    **invoke: Any,
) -> RunOutcome:
    """Run a graph to its end and publish its one result; the package says what is published when.

    Args:
        graph: a compiled graph.
        input: its input; ``Command(resume=...)`` or None to resume an interrupted run.
        config: its config.
        client: the sidecar's client.
        correlation_id: the event ID of the trigger.
        workflow_id: which workflow this is.
        workflow_run_id: which run of it; the config's ``thread_id`` if left out, or else a new UUID.
        generation: another number publishes another result for the same correlation ID.
        failure: gets the final state and returns why it is a failure, or None.
        select: gets the final state and returns what becomes the result.
        **invoke: further arguments of ``graph.invoke``.

    Returns:
        Its output and the receipt. A ``WorkflowFailure`` is returned, not raised: it is an answer.

    Raises:
        Exception: what the graph raised, once that is published as ``error``. Likewise what
            ``failure`` or ``select`` raised.
        ResultRejected, TypeError, ValueError: the result can never be published (too large, no
            JSON object, …); an ``error`` result that says so is published in its place.
        SidecarUnavailable: the result may or may not be held. Its traceback shows what the graph raised.
    """
    if isinstance(client, AsyncSidecarClient):
        raise TypeError("run_and_publish takes a SidecarClient; arun_and_publish takes the AsyncSidecarClient")
    identity = _identity(correlation_id, workflow_id, workflow_run_id, generation, config, invoke)
    watch = _Watch()
    try:
        output = graph.invoke(input, with_handler(config, watch), **invoke)
        if watch.interrupted or _shows_interrupts(output):
            return _interrupted(graph, output, identity)
        if not watch.called and (thread := _thread_config(config)) and graph.get_state(thread).next:
            return _interrupted(graph, output, identity)
        answer = judge(_state(output), failure, select)
    except WorkflowFailure as e:
        output, answer = e.result, failure_answer(e)
    except Exception as e:
        if (said := answer_to(e)) is not None:
            hand_over(client, identity, said)
        raise
    return RunOutcome(output, hand_over(client, identity, answer), False, answer.status)


async def arun_and_publish(
    graph: Any,
    input: Any,
    config: RunnableConfig | None = None,
    *,
    client: AsyncSidecarClient,
    correlation_id: str | UUID,
    workflow_id: str,
    workflow_run_id: str | None = None,
    generation: int = 0,
    failure: Failure | None = None,
    select: Select | None = None,
    **invoke: Any,
) -> RunOutcome:
    """Run a graph with ``ainvoke`` and publish its one result, as ``run_and_publish`` does.

    When it is cancelled while the graph runs, nothing is published; when it is
    cancelled while the result is handed over, it may or may not be held.
    """
    if isinstance(client, SidecarClient):
        raise TypeError("arun_and_publish takes an AsyncSidecarClient: a SidecarClient would block the loop")
    identity = _identity(correlation_id, workflow_id, workflow_run_id, generation, config, invoke)
    watch = _Watch()
    try:
        output = await graph.ainvoke(input, with_handler(config, watch), **invoke)
        if watch.interrupted or _shows_interrupts(output):
            return _interrupted(graph, output, identity)
        if not watch.called and (thread := _thread_config(config)) and (await graph.aget_state(thread)).next:
            return _interrupted(graph, output, identity)
        answer = judge(_state(output), failure, select)
    except WorkflowFailure as e:
        output, answer = e.result, failure_answer(e)
    except Exception as e:
        if (said := answer_to(e)) is not None:
            await ahand_over(client, identity, said)
        raise
    return RunOutcome(output, await ahand_over(client, identity, answer), False, answer.status)


class _Watch(GraphCallbackHandler):
    """Sees whether the run is interrupted; a breakpoint (``interrupt_before``) shows nowhere else."""

    raise_error = True
    run_inline = True

    def __init__(self) -> None:
        self.called = False  # not so by a graph that runs elsewhere, such as a RemoteGraph
        self.interrupted = False
        self._root: UUID | None = None

    def on_chain_start(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        if not self.called:  # the first run that starts is the graph's own; those within it come later
            self.called, self._root = True, run_id

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        # A graph within it, on a thread of its own, may be interrupted while this one goes on to its end.
        self.interrupted = self.interrupted or event.run_id == self._root


def with_handler(config: RunnableConfig | None, handler: GraphCallbackHandler) -> RunnableConfig:
    """Return the config with one handler more; what the caller gave is left as it is."""
    given = (config or {}).get("callbacks")
    if isinstance(given, BaseCallbackManager):
        callbacks = given.copy()
        callbacks.add_handler(handler)
        return {**(config or {}), "callbacks": callbacks}
    return {**(config or {}), "callbacks": [*(given or []), handler]}


def _identity(
    correlation_id: str | UUID,
    workflow_id: str,
    workflow_run_id: str | None,
    generation: int,
    config: RunnableConfig | None,
    invoke: Mapping[str, Any],
) -> Identity:
    """Check what can be checked before the graph runs."""
    if invoke.get("stream_mode", "values") != "values":
        raise TypeError("stream_mode cannot be given: the result is made of the final state, which is `values`")
    return Identity.of(correlation_id, workflow_id, workflow_run_id or thread_of(config) or str(uuid4()), generation)


def _interrupted(graph: Any, output: Any, identity: Identity) -> RunOutcome:
    """Leave the run as it is; say so aloud where it can never go on."""
    if getattr(graph, "checkpointer", True) is None:  # a graph that runs elsewhere does not tell
        _log.warning(
            "the run for correlation ID %s is interrupted, and its graph has no checkpointer: nobody can resume it, "
            "and it has no result. Compile the graph with a checkpointer that outlives the process",
            identity.correlation_id,
        )
    return RunOutcome(output, None, True, None)


def _state(output: Any) -> Any:
    return output.value if isinstance(output, GraphOutput) else output


def _shows_interrupts(output: Any) -> bool:
    """Tell whether the output itself says that the run is interrupted."""
    if isinstance(output, GraphOutput):
        return bool(output.interrupts)
    return isinstance(output, Mapping) and "__interrupt__" in output


def _thread_config(config: RunnableConfig | None) -> RunnableConfig | None:
    """Return the config of the thread as it stands now, if there is a thread, to ask the graph for it.

    The checkpoint that a run began from is left out: it would tell how things stood before.
    """
    configurable = (config or {}).get("configurable") or {}
    if "thread_id" not in configurable:
        return None
    return {**(config or {}), "configurable": {k: v for k, v in configurable.items() if k != "checkpoint_id"}}
