"""What may not go into a wheel. The wheel itself is tried by `make test-wheel`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "build_wheel.py"


def refused(binary: str, destination: Path) -> str:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), binary, str(destination)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert not destination.exists()
    return run.stderr


def test_a_dynamic_binary_is_refused(tmp_path: Path) -> None:
    """The tags promise that it runs on any Linux."""
    binary = os.environ.get("SIDECAR_BIN")
    if not binary:
        pytest.fail("SIDECAR_BIN is not set: run `make test-python`, or `make build` and set it to bin/sidecar")
    assert "linked dynamically" in refused(binary, tmp_path / "dist")


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    assert "not a 64-bit little-endian ELF program" in refused(str(SCRIPT), tmp_path / "dist")
