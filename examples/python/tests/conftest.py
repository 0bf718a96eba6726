"""The real sidecar, with an embedded broker, for the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from workflow_results import SidecarClient


@dataclass
class Sidecar:
    socket: str
    broker: str
    directory: Path
    process: subprocess.Popen[bytes]


def start(directory: Path) -> Sidecar:
    binary = os.environ.get("SIDECAR_BIN")
    if not binary:
        pytest.fail("SIDECAR_BIN is not set: run `make test-python`, or `make build` and set it to bin/sidecar")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        broker = f"127.0.0.1:{probe.getsockname()[1]}"
    path = str(directory / "s")
    process = subprocess.Popen(
        [
            binary, "run", "--embedded-broker", "--brokers", broker, "--socket", path,
            "--data-dir", str(directory / "data"), "--linger", "0s", "--shutdown-timeout", "5s",
        ]
    )  # fmt: skip
    with SidecarClient(path, deadline=30) as client:
        client.status()  # waits for the socket
    return Sidecar(path, broker, directory, process)


@pytest.fixture(scope="session")
def sidecar() -> Iterator[Sidecar]:
    with tempfile.TemporaryDirectory(prefix="wr") as directory:
        running = start(Path(directory))
        yield running
        running.process.terminate()
        assert running.process.wait(30) == 0


@pytest.fixture
def client(sidecar: Sidecar) -> Iterator[SidecarClient]:
    with SidecarClient(sidecar.socket) as made:
        yield made
