"""Hand a workflow's result to the rest of the company, and wait for it there.

Names are loaded when they are first used: the client needs the standard library
alone, the waiting side confluent-kafka and pydantic (``[kafka]``). LangGraph is in
``workflow_results.langgraph``, Airflow in ``workflow_results.airflow``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_results.aio import AsyncSidecarClient
    from workflow_results.client import SidecarClient
    from workflow_results.errors import (
        ResultConflict,
        ResultRejected,
        ResultTooLarge,
        SidecarError,
        SidecarUnavailable,
    )
    from workflow_results.events import EventType, WorkflowEvent, WorkflowResultEvent
    from workflow_results.poller import AsyncWorkflowResultPoller, WorkflowResultPoller
    from workflow_results.producer import WorkflowEventProducer
    from workflow_results.receipt import Receipt
    from workflow_results.result import (
        ResultStreamError,
        ResultTimeout,
        ResultWaitError,
        TriggerNotDelivered,
        WorkflowErrored,
        WorkflowFailed,
        WorkflowResult,
    )
    from workflow_results.result_producer import ResultProducer
    from workflow_results.sidecar import Sidecar, SidecarNotFound, SidecarStartError

__all__ = [
    "AsyncSidecarClient",
    "AsyncWorkflowResultPoller",
    "EventType",
    "Receipt",
    "ResultConflict",
    "ResultProducer",
    "ResultRejected",
    "ResultStreamError",
    "ResultTimeout",
    "ResultTooLarge",
    "ResultWaitError",
    "Sidecar",
    "SidecarClient",
    "SidecarError",
    "SidecarNotFound",
    "SidecarStartError",
    "SidecarUnavailable",
    "TriggerNotDelivered",
    "WorkflowErrored",
    "WorkflowEvent",
    "WorkflowEventProducer",
    "WorkflowFailed",
    "WorkflowResult",
    "WorkflowResultEvent",
    "WorkflowResultPoller",
]

_HOMES = {
    "aio": ["AsyncSidecarClient"],
    "client": ["SidecarClient"],
    "errors": ["ResultConflict", "ResultRejected", "ResultTooLarge", "SidecarError", "SidecarUnavailable"],
    "events": ["EventType", "WorkflowEvent", "WorkflowResultEvent"],
    "poller": ["AsyncWorkflowResultPoller", "WorkflowResultPoller"],
    "producer": ["WorkflowEventProducer"],
    "receipt": ["Receipt"],
    "result": [
        "ResultStreamError",
        "ResultTimeout",
        "ResultWaitError",
        "TriggerNotDelivered",
        "WorkflowErrored",
        "WorkflowFailed",
        "WorkflowResult",
    ],
    "result_producer": ["ResultProducer"],
    "sidecar": ["Sidecar", "SidecarNotFound", "SidecarStartError"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_NEEDS_KAFKA = {"confluent_kafka", "pydantic"}


def __getattr__(name: str) -> Any:
    """Load the module that a name is in.

    Raises:
        AttributeError: there is no such name.
        ImportError: what the name needs is not installed; the text says what to type.
    """
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    except ModuleNotFoundError as e:
        if e.name in _NEEDS_KAFKA:
            raise ImportError(f'{name} needs {e.name}: pip install "workflow-results[kafka]"', name=e.name) from e
        raise


def __dir__() -> list[str]:
    """List the names, loaded or not."""
    return sorted({*globals(), *__all__})
