"""What `import workflow_results` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import workflow_results


@pytest.mark.parametrize("name", workflow_results.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(workflow_results, name).__module__.startswith("workflow_results.")
    assert name in dir(workflow_results)


def test_no_other_name_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = workflow_results.Nothing


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_client_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); "
        "from workflow_results import AsyncSidecarClient, SidecarClient, Sidecar; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    assert run(code) == "['workflow_results']"


def test_what_is_missing_is_named_with_the_command() -> None:
    code = (
        "import sys; sys.modules['confluent_kafka'] = None\n"
        "import workflow_results\n"
        "try: workflow_results.WorkflowResultPoller\n"
        "except ImportError as e: print(e)"
    )
    assert run(code) == 'WorkflowResultPoller needs confluent_kafka: pip install "workflow-results[kafka]"'
