"""Hand a workflow's result to the rest of the company, through the sidecar."""

from workflow_results.client import Receipt, SidecarClient
from workflow_results.errors import (
    ResultConflict,
    ResultRejected,
    ResultTooLarge,
    SidecarError,
    SidecarUnavailable,
)

__all__ = [
    "Receipt",
    "ResultConflict",
    "ResultRejected",
    "ResultTooLarge",
    "SidecarClient",
    "SidecarError",
    "SidecarUnavailable",
]
