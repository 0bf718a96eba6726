"""Going on with a run that was interrupted, on behalf of the person who decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.types import Command

from workflow_results._handover import Identity
from workflow_results.agent.answer import config_of
from workflow_results.agent.config import NOTHING
from workflow_results.aio import AsyncSidecarClient
from workflow_results.errors import ResultRejected
from workflow_results.events import EventType, WorkflowEvent
from workflow_results.langgraph import RunOutcome, arun_and_publish


class CannotResume(Exception):
    """The run cannot be resumed like this; nothing was run, the text says why."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of it."""

    correlation_id: str
    event_id: str
    interrupted: bool  # it waits again
    status: str | None  # of the result that the sidecar holds
    state: str | None


async def resume(
    graph: Any,
    sidecar: AsyncSidecarClient,
    correlation_id: str,
    value: Any = NOTHING,
    *,
    interrupt_id: str | None = None,
    workflow_id: str | None = None,
    workflow_run_id: str | None = None,
) -> Resumed:
    """Resume a trigger's run and publish its result.

    Args:
        graph: the graph, with the checkpointer that holds the run.
        sidecar: its client.
        correlation_id: the event ID of the trigger.
        value: what the interrupt returns; left out, the run goes on from a breakpoint or from where it broke off.
        interrupt_id: which interrupt, where several wait.
        workflow_id: which workflow; found in the checkpoint if left out.
        workflow_run_id: which run of it; likewise.

    Raises:
        CannotResume: nothing waits, the value does not fit what waits, or it is answered already.
        SidecarUnavailable: call it again: what has run is not run twice.
        Exception: the run broke in a way that could not even be published.
    """
    config: RunnableConfig = {"configurable": {"thread_id": correlation_id}}
    if not getattr(graph, "checkpointer", None):
        raise CannotResume("the graph has no checkpointer: no run of it can be resumed")
    state = await graph.aget_state(config)
    if state.created_at is None:
        raise CannotResume(
            f"the checkpointer has no run of correlation ID {correlation_id}. Is that the trigger's event_id, and the "
            "checkpointer the one that the agent uses?"
        )
    event = _event(correlation_id, state.metadata or {}, workflow_id, workflow_run_id)
    identity = Identity.of(event.event_id, event.workflow_id, event.workflow_run_id, 0)
    if (held := await _held(sidecar, identity.event_id)) is not None:
        raise CannotResume(f"correlation ID {correlation_id} is answered already, with status {held['status']}")
    given = _input(state, value, interrupt_id)
    try:
        outcome: RunOutcome = await arun_and_publish(
            graph, given, config_of(event), client=sidecar, correlation_id=event.event_id,
            workflow_id=event.workflow_id, workflow_run_id=event.workflow_run_id,
        )  # fmt: skip
    except Exception:
        # What the graph raised is published as an error; that is an answer.
        if (held := await _held(sidecar, identity.event_id)) is None:
            raise
        return Resumed(correlation_id, identity.event_id, False, held["status"], held["state"])
    if outcome.interrupted:
        return Resumed(correlation_id, identity.event_id, True, None, None)
    held = await sidecar.get(identity.event_id)
    return Resumed(correlation_id, identity.event_id, False, held["status"], held["state"])


def _event(correlation_id: str, noted: Any, workflow_id: str | None, workflow_run_id: str | None) -> WorkflowEvent:
    """Make the trigger out of what the agent noted in the checkpoint."""
    workflow_id = workflow_id or noted.get("workflow_id")
    workflow_run_id = workflow_run_id or noted.get("workflow_run_id")
    if not workflow_id or not workflow_run_id:
        raise CannotResume("the checkpoint does not tell the workflow: give --workflow-id and --workflow-run-id")
    return WorkflowEvent.model_validate({
        "event_id": correlation_id, "event_type": EventType.WORKFLOW_TRIGGERED, "workflow_id": workflow_id,
        "workflow_run_id": workflow_run_id, "payload": {},
    })  # fmt: skip


def _input(state: Any, value: Any, interrupt_id: str | None) -> Command[Any] | None:
    """Make the graph's input, so that it goes to the one interrupt that is meant.

    It is checked here, for LangGraph's own refusal would be published as the run's end.
    """
    waiting = [each.id for each in state.interrupts]
    if value is NOTHING:
        if waiting:
            raise CannotResume(f"the run waits for a value: give --value ({', '.join(waiting)})")
        return None
    if not waiting:
        raise CannotResume("no interrupt waits for a value: leave out --value to go on from where the run stands")
    if interrupt_id is None and len(waiting) > 1:
        raise CannotResume(f"several interrupts wait; give --interrupt-id, one of {', '.join(waiting)}")
    if interrupt_id is not None and interrupt_id not in waiting:
        raise CannotResume(f"interrupt {interrupt_id} does not wait; those that do: {', '.join(waiting)}")
    return Command(resume={interrupt_id or waiting[0]: value})


async def _held(sidecar: AsyncSidecarClient, event_id: str) -> dict[str, Any] | None:
    try:
        return await sidecar.get(event_id)
    except ResultRejected as e:
        if e.status != 404:
            raise
        return None
