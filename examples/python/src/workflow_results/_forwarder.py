"""Carry the sidecar's log, JSON lines on a pipe, into Python's logging."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections import deque
from typing import Any

from workflow_results import _pipes

logger = logging.getLogger("workflow_results.sidecar")

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
_TAIL = 20  # lines kept for an error's text
_WAITING = 1000  # lines that may wait for slow log handlers; more are dropped and counted
_MAX_LINE = 1 << 16  # bytes; a longer line is cut in pieces
_TRACE = (b"panic: ", b"fatal error: ", b"SIG", b"goroutine ")  # how Go begins to tell of a crash


class LogForwarder:
    """Reads one child's log until its end, whatever the log handlers do.

    One thread only reads, so that the child never blocks on a full pipe; another
    hands the lines to the handlers, which may be slow.
    """

    def __init__(self, fd: int) -> None:
        """Take over the read end of the child's log and begin."""
        self._fd = fd
        self._tail: deque[bytes] = deque(maxlen=_TAIL)
        self._queue: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self.saw_trace = False  # the child wrote a crash of Go's runtime
        self._reader = threading.Thread(target=self._read, name="sidecar-log-reader", daemon=True)
        self._emitter = threading.Thread(target=self._emit, name="sidecar-log", daemon=True)
        self._reader.start()
        self._emitter.start()

    def tail(self) -> list[str]:
        """Return the last lines, as they are logged."""
        return [parse(line)[1] for line in list(self._tail)]

    def join(self, timeout: float) -> None:
        """Wait, at most ``timeout`` seconds each, until all is read and handed over."""
        self._reader.join(timeout)
        self._emitter.join(timeout)

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._fd, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _MAX_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._take(line)
        if rest:
            self._take(rest)
        _pipes.let_go(self._fd)
        self._queue.put(None)  # the child has ended: here waiting holds nobody up

    def _take(self, line: bytes) -> None:
        self._tail.append(line)
        self.saw_trace = self.saw_trace or line.startswith(_TRACE)
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _emit(self) -> None:
        told = 0
        while (line := self._queue.get()) is not None:
            level, text, fields = parse(line)
            logger.log(level, text, extra={"sidecar_fields": fields})
            if (dropped := self._dropped) > told:
                logger.warning("%d lines of the sidecar's log were dropped: log handlers are too slow", dropped - told)
                told = dropped


def parse(line: bytes) -> tuple[int, str, dict[str, Any]]:
    """Turn a line into (level, text, fields).

    What is no JSON is told as an error: the sidecar writes so only when its flags
    are wrong or when it crashes.
    """
    try:
        fields = json.loads(line)
        message, level = str(fields.pop("msg")), str(fields.pop("level"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return logging.ERROR, line.decode(errors="replace"), {}
    shown = "".join(f" {name}={_text(value)}" for name, value in fields.items() if name != "time")
    return _LEVELS.get(level.partition("+")[0].partition("-")[0], logging.INFO), message + shown, fields


def _text(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)
