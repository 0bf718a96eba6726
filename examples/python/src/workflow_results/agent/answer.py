"""One trigger's way to its answer: ask whether it has one, run the graph, hand over the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp

from workflow_results._handover import Answer, Identity, ahand_over, error_answer
from workflow_results.agent.logs import say, where
from workflow_results.agent.patience import PatientSidecarClient
from workflow_results.errors import ResultRejected
from workflow_results.events import WorkflowEvent
from workflow_results.langgraph import RunOutcome, arun_and_publish

NO_CHECKPOINTER = (
    "the run was interrupted, and its graph has no checkpointer: nobody could resume it. "
    "Compile the graph with a checkpointer that outlives the process"
)


class Settled(Enum):
    """How a trigger stands when the agent is through with it."""

    ANSWERED = "answered"  # the sidecar holds its result
    INTERRUPTED = "interrupted"  # its checkpointer holds the run, somebody has to resume it
    UNPUBLISHABLE = "unpublishable"  # the sidecar refuses any result for it


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of a trigger."""

    kind: Settled
    reason: str | None = None  # of an unpublishable one


def config_of(event: WorkflowEvent) -> RunnableConfig:
    """Make the config of a trigger's run. The metadata goes into the checkpoints: `resume` reads it there."""
    return {
        "configurable": {"thread_id": str(event.event_id)},
        "metadata": {
            "correlation_id": str(event.event_id),
            "workflow_id": event.workflow_id,
            "workflow_run_id": event.workflow_run_id,
        },
    }


def ids(event: WorkflowEvent) -> dict[str, str]:
    """Name a trigger in the log."""
    return {
        "correlation_id": str(event.event_id),
        "workflow_id": event.workflow_id,
        "workflow_run_id": event.workflow_run_id,
    }


def waits(graph: Any, state: Any) -> bool:
    """Tell whether a thread waits for a person: at an interrupt, or at a breakpoint.

    Where a run that ended in a crash cannot be told from one at a breakpoint, it
    is taken for one that waits: it must not pass an approval by itself.
    """
    if state.interrupts:
        return True
    before, after = graph.interrupt_before_nodes, graph.interrupt_after_nodes
    return bool(state.next) and (bool(after) or before == "*" or bool(set(state.next) & set(before or ())))


class Answering:
    """Answers triggers with one graph."""

    def __init__(self, graph: Any, sidecar: PatientSidecarClient) -> None:
        """Take the graph, as `graphs.load` returns it, and the sidecar's client."""
        self._graph = graph
        self._sidecar = sidecar
        self.checkpointed = bool(getattr(graph, "checkpointer", None))

    async def settle(self, event: WorkflowEvent) -> Settlement:
        """Take a trigger to its end. When this returns, its offset may be committed (or it goes to the dead letters).

        Raises:
            ResultRejected: the sidecar does not let us ask.
        """
        identity = Identity.of(event.event_id, event.workflow_id, event.workflow_run_id, 0)
        if await self._sidecar.holds(identity.event_id):
            say(logging.INFO, "the trigger is answered already", **ids(event))
            return Settlement(Settled.ANSWERED)
        began = time.monotonic()
        say(logging.INFO, "the run begins", **ids(event))
        try:
            settlement = await self._run(event, identity)
        # A node may raise whatever it likes, sys.exit() included; none of that is meant for the agent, which would take
        # the trigger again and again.
        except BaseException as e:
            settlement = await self._after(e, event, identity)
        say(logging.INFO, "the run is settled", **ids(event), settled=settlement.kind.value,
            seconds=round(time.monotonic() - began, 3))  # fmt: skip
        return settlement

    async def _run(self, event: WorkflowEvent, identity: Identity) -> Settlement:
        config = config_of(event)
        given: Mapping[str, Any] | None = event.payload
        if self.checkpointed:
            state = await self._graph.aget_state(config)
            if waits(self._graph, state):
                return _interrupted(event)
            if state.created_at is not None:
                # The agent died in this run: it goes on from its last checkpoint. If it had come to its end, what it
                # ended with is read and nothing is run.
                say(logging.INFO, "the run goes on from its checkpoint", **ids(event), next=",".join(state.next))
                given = None
        outcome: RunOutcome = await arun_and_publish(
            self._graph, given, config, client=self._sidecar, correlation_id=event.event_id,
            workflow_id=event.workflow_id, workflow_run_id=event.workflow_run_id,
        )  # fmt: skip
        if not outcome.interrupted:
            return Settlement(Settled.ANSWERED)
        return await self._stuck(event, identity)

    async def _after(self, error: BaseException, event: WorkflowEvent, identity: Identity) -> Settlement:
        """See to it that a run that raised has its answer; usually it was published before it was raised."""
        if isinstance(error, GraphBubbleUp):
            return await self._stuck(event, identity)
        say(logging.WARNING, "the run broke", **ids(event), error=where(error))
        if await self._sidecar.holds(identity.event_id):
            return Settlement(Settled.ANSWERED)
        return await self._hand_over(identity, error_answer(error))

    async def _stuck(self, event: WorkflowEvent, identity: Identity) -> Settlement:
        """Leave an interrupted run to its checkpointer; without one it is answered, for it can never go on."""
        if self.checkpointed:
            return _interrupted(event)
        return await self._hand_over(identity, Answer("error", error=NO_CHECKPOINTER))

    async def _hand_over(self, identity: Identity, answer: Answer) -> Settlement:
        try:
            await ahand_over(self._sidecar, identity, answer)
        except ResultRejected as e:
            return Settlement(Settled.UNPUBLISHABLE, f"the sidecar refuses any result: {e}")
        return Settlement(Settled.ANSWERED)


def _interrupted(event: WorkflowEvent) -> Settlement:
    say(logging.WARNING, "the run is interrupted and waits for `resume`", **ids(event))
    return Settlement(Settled.INTERRUPTED)
