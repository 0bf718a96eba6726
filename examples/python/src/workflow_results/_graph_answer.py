"""What a graph's run says to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp

from workflow_results._handover import Answer, error_answer
from workflow_results._protocol import Status
from workflow_results.receipt import Receipt

Failure = Callable[[Any], str | None]  # of the final state: why it is a failure, or None
Select = Callable[[Any], Any]  # of the final state: what becomes the result


class WorkflowFailure(RuntimeError):
    """Raised by a node to declare that the workflow fails: it decided so, nothing broke.

    It is a RuntimeError because LangGraph's retry policy does not retry those.

    Args:
        reason: why, for whoever waits.
        result: what to tell beside the reason; becomes a JSON object.
    """

    def __init__(self, reason: str, result: Mapping[str, Any] | Any | None = None) -> None:
        """Keep both."""
        super().__init__(reason)
        self.reason = reason
        self.result = result


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended, and where its result is."""

    output: Any  # what the graph returned; of a WorkflowFailure, its result
    receipt: Receipt | None  # None: nothing was published
    interrupted: bool  # the run waits to be resumed
    status: Status | None  # what was to be published; None: nothing


def judge(state: Any, failure: Failure | None, select: Select | None) -> Answer:
    """Make the answer of a run that came to its end.

    Raises:
        TypeError: ``failure`` returned something else than a reason or None.
        Exception: whatever ``failure`` or ``select`` raised.
    """
    reason = failure(state) if failure else None
    if reason is not None and not isinstance(reason, str):
        raise TypeError(f"failure= must return why it is a failure, or None; not a {type(reason).__qualname__}")
    result = select(state) if select else state
    return Answer("success", result) if reason is None else Answer("failure", result, reason)


def failure_answer(error: WorkflowFailure) -> Answer:
    """Make the answer of a run that declared itself a failure."""
    return Answer("failure", error.result, error.reason)


def answer_to(error: BaseException) -> Answer | None:
    """Make the answer of a run that raised; None where it can go on, or where nobody knows how it would have ended."""
    if isinstance(error, WorkflowFailure):
        return failure_answer(error)
    # What bubbles up is an interrupt in a part of a graph, or a drained run: both can be resumed. What is no
    # Exception is a cancellation, an abandoned stream, or the end of the process.
    if isinstance(error, GraphBubbleUp) or not isinstance(error, Exception):
        return None
    return error_answer(error)


def thread_of(config: RunnableConfig | None) -> str | None:
    """Return the ID of the thread that a config names: it stays the same when the run is resumed or repeated."""
    thread = ((config or {}).get("configurable") or {}).get("thread_id")
    return None if thread is None else str(thread)
