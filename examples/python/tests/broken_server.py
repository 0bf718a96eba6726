"""A server that misbehaves by script: what the real one cannot be made to do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

CREATED = b'{"event_id":"e","seq":1,"state":"pending","duplicate":false}'

# What is answered to one request: these bytes, or None to hang up. A function is
# called with the number of the connection, from 1.
Step = bytes | None | Callable[[int], bytes | None]


def http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


class BrokenServer:
    """Answers each request by the next step of a script, each connection in a thread of its own.

    When the script is over it hangs up. An answer with ``hang up`` in it is the
    last of its connection.
    """

    def __init__(self, path: Path, *steps: Step) -> None:
        self.bodies: list[bytes] = []
        self.targets: list[str] = []
        self.connections = 0
        self.closing = threading.Event()
        self._steps = list(steps)
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(32)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def event_ids(self) -> list[str | None]:
        return [json.loads(line).get("event_id") for body in self.bodies for line in body.splitlines()]

    def silent(self, _: int) -> None:
        """As a step: no answer, and no end of the connection."""
        self.closing.wait()

    def send(self, number: int, data: bytes) -> None:
        """Send a part of an answer, within a step."""
        self._open[number].sendall(data)

    def close(self) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10)
        self._listener.close()
        with self._lock:
            for conn in self._open.values():
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                self.connections += 1
                number = self.connections
                self._open[number] = conn
            thread = threading.Thread(target=self._serve, args=(conn, number))
            self._threads.append(thread)
            thread.start()

    def _serve(self, conn: socket.socket, number: int) -> None:
        try:
            with conn.makefile("rb") as stream:
                while (step := self._next(stream)) is not None:
                    answer = step(number) if callable(step) else step
                    if answer is None:
                        break
                    conn.sendall(answer)
                    if b"hang up" in answer:
                        break
        except OSError:
            pass  # the client hung up: some tests make it do so
        finally:
            with self._lock:
                self._open.pop(number).close()

    def _next(self, stream: BinaryIO) -> Any:
        """Read a request and take its step; None when the connection is to end."""
        request = _request(stream)
        if request is None:
            return None
        with self._lock:
            self.targets.append(request[0])
            self.bodies.append(request[1])
            return self._steps.pop(0) if self._steps else None


def _request(stream: BinaryIO) -> tuple[str, bytes] | None:
    target, length = "", 0
    while line := stream.readline():
        if not target:
            target = line.split()[1].decode()
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        if line == b"\r\n":
            body = stream.read(length)
            return (target, body) if len(body) == length else None
    return None
