"""Trigger a workflow from Airflow through Kafka, and wait for its result."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_results.airflow.errors import (
        WorkflowNotTriggered,
        WorkflowResultUnreadable,
        WorkflowTaskError,
        WorkflowTaskErrored,
        WorkflowTaskFailed,
        WorkflowTimedOut,
        WorkflowWaitKilled,
    )
    from workflow_results.airflow.hook import WorkflowResultHook
    from workflow_results.airflow.operator import TriggerWorkflowOperator
    from workflow_results.airflow.sensor import WorkflowResultSensor
    from workflow_results.airflow.task import trigger_and_wait
    from workflow_results.airflow.trigger import WorkflowResultTrigger

__all__ = [
    "TriggerWorkflowOperator",
    "WorkflowNotTriggered",
    "WorkflowResultHook",
    "WorkflowResultSensor",
    "WorkflowResultTrigger",
    "WorkflowResultUnreadable",
    "WorkflowTaskError",
    "WorkflowTaskErrored",
    "WorkflowTaskFailed",
    "WorkflowTimedOut",
    "WorkflowWaitKilled",
    "trigger_and_wait",
]

_MODULES = {
    "TriggerWorkflowOperator": "operator",
    "WorkflowResultHook": "hook",
    "WorkflowResultSensor": "sensor",
    "WorkflowResultTrigger": "trigger",
    "trigger_and_wait": "task",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used: Airflow reads the provider's metadata before its own modules are ready."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
