"""Measure what the client costs: a call beside a bare exchange of the same bytes on the same socket.

    python bench/calling.py --socket /tmp/s --calls 2000

It prints one JSON object a line, with the time per call in microseconds: against the sidecar at the
socket, and against a peer that answers at once. ``all.py`` runs it by turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from workflow_results import SidecarClient, _protocol
from workflow_results.aio import AsyncSidecarClient
from workflow_results.encoding import dumps

EVENT_BYTES = 1024
RECEIVE_BYTES = 64 << 10
SLICE = 200  # calls of one kind before those of the next
WARM_UP = 50

CORRELATION_ID = str(uuid4())
RESULT: dict[str, Any] = {"decision": "approved", "total": 12.5, "lines": [1, 2, 3], "text": ""}


def arguments() -> dict[str, Any]:
    """Make what a call is given, with an event_id of its own, as run_and_publish gives one."""
    return {
        "correlation_id": CORRELATION_ID, "workflow_id": "order-review", "workflow_run_id": "run-1",
        "result": RESULT, "event_id": str(uuid4()),
    }  # fmt: skip


def request() -> bytes:
    """Make the bytes that the client would send."""
    settings = _protocol.Settings.of("/s", 30, 10, dumps)
    unset = {"status": "success", "error": None, "timestamp": None, "wait_published": None, "traceparent": None}
    return bytes(_protocol.publish_request(settings, **{**unset, **arguments()}))


RESULT["text"] = "x" * (EVENT_BYTES - len(request().partition(b"\r\n\r\n")[2]))


def serve(listener: socket.socket, answer: bytes) -> None:
    """Answer every request as soon as all of it is there, each connection in a process of its own."""
    size = len(request())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        connection, _ = listener.accept()
        if os.fork() != 0:
            connection.close()
            continue
        listener.close()
        got = 0
        while data := connection.recv(RECEIVE_BYTES):
            got += len(data)
            if got == size:
                connection.sendall(answer)
                got = 0
        return


class Peer:
    """A process that answers with the same bytes whatever it is sent; a thread would share the caller's interpreter."""

    def __init__(self, path: str, answer: bytes) -> None:
        """Start it."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                serve(listener, answer)
            finally:
                os._exit(0)
        listener.close()

    def close(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Do what every client must."""
    connection.sendall(data)
    return connection.recv(RECEIVE_BYTES)


def timed(calls: int, prepare: Callable[[], Any], call: Callable[[Any], Any]) -> list[int]:
    """Return the nanoseconds of each call; what is prepared for it does not count, nor does its making."""
    took = []
    given = [prepare() for _ in range(calls)]
    for each in given:
        began = time.perf_counter_ns()
        call(each)
        took.append(time.perf_counter_ns() - began)
    return took


def after_pause(nanoseconds: float, call: Callable[[Any], Any], calls: int, prepare: Callable[[], Any]) -> list[int]:
    """As `timed`, but the caller computes for so long before each call: a peer that slept meanwhile wakes slower."""
    took = []
    for each in [prepare() for _ in range(calls)]:
        until = time.perf_counter_ns() + nanoseconds
        while time.perf_counter_ns() < until:
            pass
        began = time.perf_counter_ns()
        call(each)
        took.append(time.perf_counter_ns() - began)
    return took


async def timed_async(path: str, calls: int) -> list[int]:
    """As `timed`, for the client of asyncio."""
    took = []
    async with AsyncSidecarClient(path) as client:
        for each in [arguments() for _ in range(WARM_UP + calls)]:
            began = time.perf_counter_ns()
            await client.publish(**each)
            took.append(time.perf_counter_ns() - began)
    return took[WARM_UP:]


def measure(path: str, peer: str, calls: int) -> dict[str, Any]:
    """Measure the ways to hand over a result, by turns in slices."""
    took: dict[str, list[int]] = {"bare": [], "bare, after a pause": [], "client": [], "client, asyncio": []}
    client, connection = SidecarClient(path), socket.socket(socket.AF_UNIX)
    connection.connect(path)
    timed(WARM_UP, arguments, lambda given: client.publish(**given))
    timed(WARM_UP, request, lambda data: exchange(connection, data))
    for _ in range(max(calls // SLICE, 1)):
        bare = timed(SLICE, request, lambda data: exchange(connection, data))
        called = timed(SLICE, arguments, lambda given: client.publish(**given))
        own = max(statistics.median(called) - statistics.median(bare), 0)
        took["bare"] += bare
        took["client"] += called
        took["bare, after a pause"] += after_pause(own, lambda data: exchange(connection, data), SLICE, request)
        took["client, asyncio"] += asyncio.run(timed_async(path, SLICE))
    client.close()
    connection.close()
    return {"peer": peer, **{name: statistics.median(values) / 1000 for name, values in took.items()}}


def main() -> None:
    """Measure against both."""
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--socket", required=True, help="of a running sidecar")
    flags.add_argument("--calls", type=int, default=2000, help="of each kind against each peer")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(given.socket)
        path = str(Path(directory) / "s")
        peer = Peer(path, exchange(connection, request()))
        try:
            for at, name in ((given.socket, "sidecar"), (path, "answers at once")):
                print(json.dumps(measure(at, name, given.calls)), flush=True)
        finally:
            peer.close()


if __name__ == "__main__":
    main()
