"""One run of the sidecar's process, and whether it answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workflow_results import _pipes
from workflow_results._forwarder import LogForwarder
from workflow_results.errors import SidecarError

_USAGE = 2  # the sidecar's exit status for wrong flags; also Go's for a crash
_LOG_PATIENCE = 5.0  # seconds for slow log handlers, after the child's end
_PROBE_TIMEOUT = 2.0
_UCRED = struct.Struct("3i")  # pid, uid, gid: SO_PEERCRED, unix(7)


class SidecarStartError(SidecarError):
    """The sidecar did not start, or will not start again.

    ``exit_status`` is None where it did not end by itself, and negative for a
    signal. ``log`` has its last lines.
    """

    def __init__(self, what: str, exit_status: int | None = None, log: Sequence[str] = ()) -> None:
        """Take what went wrong, and what the sidecar told."""
        self.exit_status = exit_status
        self.log = list(log)
        lines = "".join(f"\n  | {line}" for line in self.log)
        super().__init__(what + (f"; its last log lines:{lines}" if lines else ""))


class Child:
    """A sidecar that this process started; it ends with this process.

    Its session is its own: a Ctrl-C at the terminal must reach it as the one
    SIGTERM of ``terminate``, not as a first signal before it.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start ``command`` with ``--parent-fd`` and a pipe for its log.

        Raises:
            OSError: it cannot be started.
        """
        with _pipes.no_fork:
            self._parent_end, given = _pipes.pipe_to_child()
            log_end, log_given = _pipes.pipe_from_child()
            try:
                self._process = subprocess.Popen(
                    [*command, "--parent-fd", str(given)], env=dict(env), stdin=subprocess.DEVNULL,
                    stdout=log_given, stderr=log_given, pass_fds=(given,), start_new_session=True,
                )  # fmt: skip
            except BaseException:
                _pipes.let_go(self._parent_end)
                _pipes.let_go(log_end)
                raise
            finally:
                os.close(given)
                os.close(log_given)
        self.pid = self._process.pid
        self._started = time.monotonic()
        self._log = LogForwarder(log_end)

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        return self._process.poll()

    def wait(self) -> tuple[int, float]:
        """Wait for its end; return the exit status and for how many seconds it lived."""
        status = self._process.wait()
        lived = time.monotonic() - self._started
        self._log.join(_LOG_PATIENCE)
        return status, lived

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once; what is pending stays in its data directory."""
        self._process.kill()

    def release(self) -> None:
        """Close our end of the parent pipe; once, after its end."""
        _pipes.let_go(self._parent_end)

    def refused(self) -> bool:
        """Whether it ended because its flags are wrong. Go's crashes have the same status, and a trace."""
        return self._process.returncode == _USAGE and not self._log.saw_trace

    def error(self, what: str) -> SidecarStartError:
        """Make the error that tells ``what``, with its status and last lines."""
        return SidecarStartError(what, self._process.returncode, self._log.tail())


def how(status: int) -> str:
    """Name an exit status."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"{signal.Signals(-status).name} (status {status})"
    except ValueError:
        return f"signal {-status}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What answers at a socket."""

    pid: int | None  # of the process that listens; None: nobody
    ready: bool
    reason: str


def probe(path: str) -> Probe:
    """Ask ``/readyz`` at the socket once. The kernel tells who listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = http.client.HTTPConnection("sidecar")
    connection.sock = sock
    pid = None
    try:
        sock.settimeout(_PROBE_TIMEOUT)
        sock.connect(path)
        pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as e:
        return Probe(pid, False, f"{type(e).__name__}: {e}")
    finally:
        connection.close()
    return Probe(pid, answer.status == 200, "" if answer.status == 200 else _reason(answer.status, body))


def _reason(status: int, body: bytes) -> str:
    try:
        return f"/readyz answers {status}: {json.loads(body)['reason']}"
    except (ValueError, KeyError, TypeError):
        return f"/readyz answers {status}: {body[:200]!r}"
