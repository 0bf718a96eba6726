"""Keep one sidecar running until told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from workflow_results._child import Child, SidecarStartError, how, probe
from workflow_results._forwarder import logger

_FIRST_PAUSE = 0.1  # seconds before a restart; doubled each time
_MAX_PAUSE = 10.0
_SETTLED = 30.0  # seconds of life after which the pauses begin anew
_LOOK = 0.02  # seconds between two looks at a sidecar that starts
_NUDGE = 0.1  # seconds between two calls of `meanwhile`
_GRACE = 5.0  # seconds to end, for one that was never ready


class Supervisor:
    """Starts the sidecar, starts it again after a crash, and ends it.

    Whatever ends the process unasked is a crash, also an exit status of 0: who
    holds a ``Sidecar`` relies on it. Wrong flags are not: they stay wrong.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], socket_path: str) -> None:
        """Take the command line and the environment; nothing is started yet."""
        self._command, self._env, self._socket_path = command, env, socket_path
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._child: Child | None = None
        self._thread = threading.Thread(target=self._supervise, name="sidecar-supervisor", daemon=True)
        self.failure: SidecarStartError | None = None  # why it is not started again

    def pid(self) -> int | None:
        """Return the PID of the process that runs, None between two."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def pid_at_fork(self) -> int | None:
        """Return the last PID, for a forked process: it is no parent of the sidecar and cannot look."""
        child = self._child
        return None if child is None else child.pid

    def start(self, ready_timeout: float) -> None:
        """Start it and wait until it is ready.

        Raises:
            SidecarStartError: it ended first, or was not ready in time.
        """
        try:
            self._child = child = Child(self._command, self._env)
        except OSError as e:
            raise SidecarStartError(f"cannot start {self._command[0]}: {e}") from e
        try:
            self._await_ready(child, ready_timeout)
        except BaseException:
            _end(child)
            raise
        self._thread.start()

    def stop(self, timeout: float, meanwhile: Callable[[], None]) -> None:
        """Let it drain, at most ``timeout`` seconds, then kill it. ``meanwhile`` is called again and again."""
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is None:  # never started, or stopped between two
            return
        child.terminate()
        by = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < by:
            meanwhile()
            self._thread.join(_NUDGE)
        if child.poll() is None:
            logger.error("the sidecar (PID %d) did not end in %g s and is killed; what is pending stays in its data "
                         "directory", child.pid, timeout)  # fmt: skip
            child.kill()
        self._thread.join()

    def _await_ready(self, child: Child, timeout: float) -> None:
        by = time.monotonic() + timeout
        while True:
            seen = probe(self._socket_path)
            if seen.ready and seen.pid == child.pid:
                return
            if child.poll() is not None:
                status, _ = child.wait()
                raise child.error(f"the sidecar ended before it was ready, with {how(status)}")
            if time.monotonic() >= by:
                why = _why(seen.pid, child.pid, seen.reason)
                raise child.error(f"the sidecar was not ready in {timeout:g} s: {why}")
            time.sleep(_LOOK)

    def _supervise(self) -> None:
        pause = _FIRST_PAUSE
        while (child := self._child) is not None:
            status, lived = child.wait()
            child.release()
            if self._stopping.is_set():
                if status != 0:
                    logger.error("the sidecar (PID %d) was told to end and ended with %s", child.pid, how(status))
                return
            if child.refused():
                self.failure = child.error(f"the sidecar is not started again: it refuses its flags ({how(status)})")
                logger.error("%s", self.failure)
                return
            pause = _FIRST_PAUSE if lived >= _SETTLED else pause
            logger.error("the sidecar (PID %d) ended unasked with %s after %.1f s; it is started again in %g s",
                         child.pid, how(status), lived, pause)  # fmt: skip
            pause = self._start_again(pause)

    def _start_again(self, pause: float) -> float:
        """Start it after ``pause`` seconds, or longer while that fails; return the pause that comes after it."""
        while not self._stopping.wait(pause):
            pause = min(2 * pause, _MAX_PAUSE)
            with self._lock:
                if self._stopping.is_set():
                    break
                try:
                    self._child = Child(self._command, self._env)
                    return pause
                except OSError as e:
                    logger.error("cannot start %s: %s; trying again in %g s", self._command[0], e, pause)
        self._child = None
        return pause


def _end(child: Child) -> None:
    child.terminate()
    by = time.monotonic() + _GRACE
    while child.poll() is None and time.monotonic() < by:
        time.sleep(_LOOK)
    child.kill()
    child.wait()
    child.release()


def _why(listener: int | None, ours: int, reason: str) -> str:
    if listener is not None and listener != ours:
        return f"PID {listener} listens at its socket, not the PID {ours} that was started"
    return reason
