"""HTTP/1.1 over a Unix socket with kept connections, on the standard library."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from dataclasses import dataclass

MAX_PATH_BYTES = 107  # sun_path on Linux without its closing NUL, unix(7)


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        """Prepare a connection; it is made with the first request."""
        super().__init__("sidecar", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    retry_after: float | None  # seconds
    body: bytes


class Transport:
    """A pool of connections to one socket; thread-safe and fork-safe.

    A connection is used by one thread at a time. After a fork the child starts
    with an empty pool: two processes must not talk on one connection.
    """

    def __init__(self, path: str, max_idle: int = 8) -> None:
        """Take the socket's path; nothing is opened yet."""
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ValueError(
                f"the socket path has {len(os.fsencode(path))} bytes, the system allows {MAX_PATH_BYTES}: {path}"
            )
        self.path = path
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._idle: list[UnixConnection] = []
        self._pid = os.getpid()

    def request(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> Response:
        """Send one request and read the whole answer.

        Raises:
            OSError, http.client.HTTPException: whatever broke; the request may
                or may not have been carried out.
        """
        conn = self._take(timeout)
        try:
            hung_up = _send(conn, method, target, body, headers)
            answer = conn.getresponse()
            data = answer.read()
            response = Response(answer.status, _seconds(answer.getheader("Retry-After")), data)
            reusable = not (answer.will_close or hung_up)
        except BaseException:
            conn.close()
            raise
        if reusable:
            self._give_back(conn)
        else:
            conn.close()
        return response

    def close(self) -> None:
        """Close the idle connections; a later request opens a new one."""
        self._forget_after_fork()
        with self._lock:
            idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()

    def _take(self, timeout: float) -> UnixConnection:
        self._forget_after_fork()
        with self._lock:
            conn = self._idle.pop() if self._idle else None
        if conn is None:
            return UnixConnection(self.path, timeout)
        conn.timeout = timeout
        if conn.sock is not None:
            conn.sock.settimeout(timeout)
        return conn

    def _give_back(self, conn: UnixConnection) -> None:
        with self._lock:
            if len(self._idle) < self._max_idle:
                self._idle.append(conn)
                return
        conn.close()

    def _forget_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # the parent's may have been held at the fork
            self._idle = []
            self._pid = os.getpid()


def _send(conn: UnixConnection, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> bool:
    """Send the request; True if the server stopped listening on the way.

    It answers a body that is too large before it has read it, and hangs up: the
    answer is there to be read all the same.
    """
    conn.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        conn.putheader(name, value)
    if body is not None:
        conn.putheader("Content-Length", str(len(body)))
    conn.endheaders()
    try:
        if body is not None:
            conn.send(body)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.isdigit() else None
