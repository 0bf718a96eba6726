"""Publish what a LangGraph graph ends with.

Whichever of the three ways is used, one run gives one result:

=============================== ==============================================
the run                         is published as
=============================== ==============================================
ends                            ``success``, with the final state (``select=``)
ends, ``failure=`` gives why    ``failure``, with the final state and the reason
raises ``WorkflowFailure``      ``failure``, with what the exception carries
raises any other exception      ``error``, with ``Type: message``
is interrupted or drained       nothing yet: it can be resumed
is cancelled or abandoned       nothing: nobody knows how it would have ended
=============================== ==============================================

The first result of a correlation ID, a workflow and a generation stands. A run
that is repeated or resumed is a duplicate of it; if it ends otherwise, a warning
is logged and the receipt tells of the first. To publish another result on
purpose, as a success after an error, give another ``generation``.
"""

from __future__ import annotations

try:
    from langgraph.callbacks import GraphCallbackHandler  # noqa: F401  # LangGraph is there, and new enough
except ImportError as e:
    raise ImportError(
        f'workflow_results.langgraph needs LangGraph 1.2: pip install "workflow-results[langgraph]" ({e})'
    ) from e

from workflow_results._graph_answer import RunOutcome, WorkflowFailure
from workflow_results._graph_handler import ResultCallbackHandler
from workflow_results._graph_node import publish_result
from workflow_results._graph_run import arun_and_publish, run_and_publish
from workflow_results._handover import result_event_id

__all__ = [
    "ResultCallbackHandler",
    "RunOutcome",
    "WorkflowFailure",
    "arun_and_publish",
    "publish_result",
    "result_event_id",
    "run_and_publish",
]
