"""The sidecar that the tests are about."""

from __future__ import annotations

import os

import pytest


def sidecar_binary() -> str:
    """Return the path of the real binary; a test that needs one fails where there is none."""
    binary = os.environ.get("SIDECAR_BIN")
    if not binary:
        pytest.fail("SIDECAR_BIN is not set: run `make test-python`, or `make build` and set it to bin/sidecar")
    return binary
