"""What Airflow shows of this package as a provider."""

from __future__ import annotations

from typing import Any

_NAME = "Workflow results"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata; the entry point ``apache_airflow_provider`` names this function.

    There is no connection type of its own: the connection is one of type ``kafka``.
    """
    return {
        "package-name": "workflow-results",
        "name": _NAME,
        "description": "Trigger a workflow through Kafka and wait for its result.",
        "integrations": [
            {
                "integration-name": _NAME,
                "external-doc-url": "https://kafka.apache.org/",
                "tags": ["software"],
            }
        ],
        "hooks": [_modules("hook")],
        "operators": [_modules("operator")],
        "sensors": [_modules("sensor")],
        "triggers": [_modules("trigger")],
    }


def _modules(name: str) -> dict[str, Any]:
    return {"integration-name": _NAME, "python-modules": [f"workflow_results.airflow.{name}"]}
