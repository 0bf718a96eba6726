"""The whole loop as a user has it: a DAG's task, the agent, a graph, the sidecar, the task's return value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from binary import sidecar_binary

HERE = Path(__file__).parent


def test_the_demo_ends_as_it_should() -> None:
    run = subprocess.run(
        [sys.executable, str(HERE.parent / "demo" / "run_airflow_demo.py")],
        env={**os.environ, "PYTHONPATH": str(HERE), "WORKFLOW_RESULTS_SIDECAR": sidecar_binary()},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the last task returned {'A-1': 'approved', 'B-2': 'declined'}" in run.stdout
    assert "broken_review.review has failed: workflow order-review" in run.stdout
    assert "KeyError: 'C-3'" in run.stdout
