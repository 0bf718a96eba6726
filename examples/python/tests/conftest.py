"""The real sidecar, with an embedded broker, and servers that misbehave."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from binary import sidecar_binary
from broken_server import BrokenServer, Step
from drivers import DRIVERS, Driver

from workflow_results import SidecarClient


@dataclass
class Sidecar:
    socket: str
    broker: str
    directory: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0


def start(directory: Path) -> Sidecar:
    binary = sidecar_binary()
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
        running.stop()


@pytest.fixture
def client(sidecar: Sidecar) -> Iterator[SidecarClient]:
    with SidecarClient(sidecar.socket) as made:
        yield made


@pytest.fixture(params=DRIVERS.values(), ids=DRIVERS.keys())
def kind(request: pytest.FixtureRequest) -> type[Driver]:
    return request.param


@pytest.fixture
def driver(kind: type[Driver], sidecar: Sidecar) -> Iterator[Driver]:
    """A client of the real sidecar."""
    made = kind(sidecar.socket)
    yield made
    made.close()


@pytest.fixture
def broken(kind: type[Driver], tmp_path: Path) -> Iterator[Callable[..., tuple[Driver, BrokenServer]]]:
    """Make a client and the server that misbehaves to it by the given steps."""
    made: list[Any] = []

    def make(*steps: Step, **options: Any) -> tuple[Driver, BrokenServer]:
        server = BrokenServer(tmp_path / "b", *steps)
        driver = kind(str(tmp_path / "b"), **{"deadline": 10, **options})
        made.extend((driver, server))
        return driver, server

    yield make
    for one in made:
        one.close()
