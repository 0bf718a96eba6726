"""What may not go into a wheel. The wheel itself is tried by `make test-wheel`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from binary import sidecar_binary

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
    assert "linked dynamically" in refused(sidecar_binary(), tmp_path / "dist")


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    assert "not a 64-bit little-endian ELF program" in refused(str(SCRIPT), tmp_path / "dist")
