"""Kept connections to a Unix socket, and the exchange that blocks on one of them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

from workflow_results._http import AnswerParser, BrokenAnswer, Request, Response

RECEIVE_BYTES = 64 << 10


class StaleConnection(Exception):
    """A kept connection ended before a byte of the answer: most likely the sidecar was restarted."""


class Pool:
    """Idle connections to one socket, none of them in anybody's hands. Thread-safe and fork-safe.

    After a fork the child starts with an empty pool: two processes must not talk
    on one connection. No connection belongs to an event loop while it is here.
    """

    def __init__(self, path: str, max_idle: int = 8) -> None:
        """Take the socket's path; nothing is opened yet."""
        self.path = path
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._pid = os.getpid()

    def take(self) -> socket.socket | None:
        """Return an idle connection, in non-blocking mode, if there is one that still stands."""
        self._forget_after_fork()
        while True:
            with self._lock:
                sock = self._idle.pop() if self._idle else None
            if sock is None or _stands(sock):
                return sock
            sock.close()

    def connect(self) -> socket.socket:
        """Open a connection, in non-blocking mode. On a Unix socket that is done at once or fails at once.

        Raises:
            OSError: nobody listens, or more wait to be let in than the system allows.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        return sock

    def give_back(self, sock: socket.socket) -> None:
        """Keep a connection on which nothing is under way."""
        self._forget_after_fork()
        with self._lock:
            if len(self._idle) < self._max_idle:
                self._idle.append(sock)
                return
        sock.close()

    def close(self) -> None:
        """Close the idle connections."""
        self._forget_after_fork()
        with self._lock:
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()

    def _forget_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # the parent's may have been held at the fork
            for sock in self._idle:
                sock.close()  # our descriptor alone: the parent's connection goes on
            self._idle = []
            self._pid = os.getpid()


def _stands(sock: socket.socket) -> bool:
    """Tell whether an idle connection is open, with nothing to be read: nothing was asked on it."""
    sock.setblocking(False)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def is_stale(error: BaseException, kept: bool, parser: AnswerParser) -> bool:
    """Tell whether a failed exchange says no more than that its connection was an old one."""
    return kept and not parser.begun and isinstance(error, (ConnectionError, BrokenAnswer))


class Transport:
    """Requests that block, on kept connections; thread-safe and fork-safe."""

    def __init__(self, path: str) -> None:
        """Take the socket's path; nothing is opened yet."""
        self.pool = Pool(path)

    def request(self, request: Request, timeout: float) -> Response:
        """Send one request and read the whole answer, both within ``timeout`` seconds.

        Raises:
            OSError, BrokenAnswer: whatever broke; the request may or may not
                have been carried out.
        """
        by = time.monotonic() + timeout
        try:
            return self._attempt(request, by, self.pool.take())
        except StaleConnection:
            self.pool.close()  # the others are as old
            return self._attempt(request, by, None)

    def _attempt(self, request: Request, by: float, kept: socket.socket | None) -> Response:
        sock = self.pool.connect() if kept is None else kept
        parser = AnswerParser()
        try:
            response = _exchange(sock, bytes(request), parser, by)
        except BaseException as e:
            sock.close()
            if is_stale(e, kept is not None, parser):
                raise StaleConnection from e
            raise
        if response.keep:
            self.pool.give_back(sock)
        else:
            sock.close()
        return response


def _exchange(sock: socket.socket, data: bytes, parser: AnswerParser, by: float) -> Response:
    # A body that is too large is answered before all of it is read: the answer is there all the same.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _send(sock, data, by)
    while True:
        sock.settimeout(_left(by))
        if (response := parser.feed(sock.recv(RECEIVE_BYTES))) is not None:
            return response


def _send(sock: socket.socket, data: bytes, by: float) -> None:
    try:
        sent = sock.send(data)  # the socket is non-blocking yet, and most requests fit into its buffer at once
    except BlockingIOError:
        sent = 0
    if sent < len(data):
        sock.settimeout(_left(by))
        sock.sendall(memoryview(data)[sent:])


def _left(by: float) -> float:
    """Seconds until then; never 0, which would mean not to wait at all."""
    if (left := by - time.monotonic()) <= 0:
        raise TimeoutError("no answer in time")
    return left
