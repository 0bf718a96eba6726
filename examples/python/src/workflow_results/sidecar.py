"""A sidecar of one's own: where nobody else runs it, the workflow process does."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from workflow_results._binary import SidecarNotFound, find_binary
from workflow_results._child import SidecarStartError, probe
from workflow_results._protocol import MAX_PATH_BYTES
from workflow_results._supervisor import Supervisor
from workflow_results.client import SidecarClient

__all__ = ["Sidecar", "SidecarNotFound", "SidecarStartError"]

_PREFIX, _RANDOM = "wr-", 8  # of the private directory's name, as tempfile makes it
_LOOK = 0.1  # seconds between two looks at another process's sidecar that starts
_HELD = "in use by another"  # what the sidecar says where its socket or its data directory is taken


class Sidecar:
    """Runs a sidecar as a child of this process, and starts it again when it crashes.

    It ends with this process, by SIGKILL too: it notices, publishes what is
    pending as on SIGTERM, and ends. Its log goes to the logger
    ``workflow_results.sidecar``, with each line's fields in the record's
    ``sidecar_fields``. Every flag of ``sidecar run`` can be given in
    ``args``, or as a ``SIDECAR_…`` variable here or in ``env``.

    A forked worker (multiprocessing, gunicorn) uses the sidecar of the process
    that started it: ``client()`` works there, ``start()`` and ``stop()`` do
    nothing. A spawned one takes ``SidecarClient(socket_path)``.

    Args:
        brokers: Kafka's addresses; default ``$SIDECAR_BROKERS``.
        data_dir: directory of the outbox, of this sidecar alone; default
            ``$SIDECAR_DATA_DIR``, or with ``embedded_broker`` one that is removed.
        socket_path: default a name in a private directory that is removed.
        binary: the program; default: see ``find_binary``.
        ready_timeout: seconds that a start may take.
        stop_timeout: seconds that draining may take before the sidecar is killed;
            what is then pending stays in ``data_dir`` for the next start.
        env: more environment variables for the sidecar.
        args: more flags of ``sidecar run``.
        embedded_broker: in place of Kafka, for tests; keeps nothing. Its address
            is in ``brokers``.
        attach: use the sidecar that answers at ``socket_path``, if one does, and
            start none. ``stop()`` leaves it alone.

    Raises:
        ValueError: the arguments contradict each other or lack something.
    """

    def __init__(
        self,
        brokers: str | Sequence[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        binary: str | os.PathLike[str] | None = None,
        ready_timeout: float = 30.0,
        stop_timeout: float = 30.0,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        embedded_broker: bool = False,
        attach: bool = False,
    ) -> None:
        """Check the arguments; nothing is started yet."""
        self._env = {**os.environ, **(env or {})}
        self._brokers = brokers if isinstance(brokers, str) or brokers is None else ",".join(brokers)
        self._data_dir = None if data_dir is None else os.path.abspath(data_dir)
        self._given_socket = None if socket_path is None else os.path.abspath(socket_path)
        self._binary, self._args = binary, list(args)
        self._ready_timeout, self._stop_timeout = ready_timeout, stop_timeout
        self._embedded, self._attach = embedded_broker, attach
        self._check()
        self._lock = threading.RLock()
        self._owner: int | None = None  # PID of the process that started it; others leave it alone
        self._supervisor: Supervisor | None = None  # None while attached
        self._private: str | None = None  # the directory to remove
        self._socket_path: str | None = self._given_socket
        self._clients: weakref.WeakSet[SidecarClient] = weakref.WeakSet()

    def start(self) -> Self:
        """Start the sidecar and wait until it is ready; does nothing where it runs.

        Raises:
            SidecarStartError: it did not become ready; tells its last log lines.
            SidecarNotFound: there is no binary.
        """
        if self._owner not in (None, os.getpid()):
            return self
        with self._lock:
            if self._owner is None:
                try:
                    self._start()
                except BaseException:
                    self._forget()
                    raise
                self._owner = os.getpid()
                atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """Let the sidecar publish what is pending and end; does nothing where it is not ours.

        The sidecar waits for its clients to hang up, so the kept connections of
        those from ``client()`` are closed here.
        """
        if self._owner != os.getpid():
            return
        with self._lock:
            if self._supervisor is not None:
                self._supervisor.stop(self._stop_timeout, self._close_idle)
            self._forget()
            self._owner = None
            atexit.unregister(self.stop)

    def client(self, **options: Any) -> SidecarClient:
        """Return a new client of this sidecar; ``options`` are those of ``SidecarClient``.

        Raises:
            SidecarStartError: it was given up, because it refuses its flags.
            RuntimeError: it was not started.
        """
        if self._supervisor is not None and self._supervisor.failure is not None:
            failure = self._supervisor.failure
            raise SidecarStartError(str(failure), failure.exit_status)
        made = SidecarClient(self.socket_path, **options)
        if self._owner == os.getpid():  # a fork may have inherited the lock as held
            with self._lock:
                self._clients.add(made)
        return made

    @property
    def socket_path(self) -> str:
        """The socket's absolute path; RuntimeError before a start that chooses it."""
        if self._socket_path is None:
            raise RuntimeError("the sidecar has no socket yet: call start(), or use it in a `with` statement")
        return self._socket_path

    @property
    def pid(self) -> int | None:
        """PID of the running sidecar; None between two, and while attached. In a fork, the one at the fork."""
        if self._supervisor is None:
            return None
        return self._supervisor.pid() if self._owner == os.getpid() else self._supervisor.pid_at_fork()

    @property
    def attached(self) -> bool:
        """Whether another process runs the sidecar that is used here."""
        return self._owner is not None and (self._supervisor is None or self._owner != os.getpid())

    @property
    def brokers(self) -> str | None:
        """Kafka's addresses as given, or the embedded broker's."""
        return self._brokers

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a spawned process cannot look after our child."""
        raise TypeError("a Sidecar cannot be sent to another process: send its socket_path and use SidecarClient there")

    def _check(self) -> None:
        if self._embedded and (self._brokers is not None or self._attach):
            raise ValueError("embedded_broker=True chooses its own address: give neither brokers nor attach with it")
        if self._attach and self._given_socket is None:
            raise ValueError("attach=True needs socket_path: where the other process has its sidecar")
        if not self._embedded:
            for value, name, variable in (
                (self._brokers, "brokers", "SIDECAR_BROKERS"), (self._data_dir, "data_dir", "SIDECAR_DATA_DIR")
            ):  # fmt: skip
                if not (value or self._env.get(variable)):
                    raise ValueError(f"{name} is missing: give it, or ${variable}, or for a test embedded_broker=True")
        if self._given_socket is not None and len(os.fsencode(self._given_socket)) > MAX_PATH_BYTES:
            raise ValueError(f"the system allows {MAX_PATH_BYTES} bytes for a socket's path: {self._given_socket}")

    def _start(self) -> None:
        if self._attach and probe(self.socket_path).ready:
            return
        binary = find_binary(self._binary)
        if self._given_socket is None or (self._embedded and self._data_dir is None):
            self._private = _private_directory()
        self._socket_path = self._given_socket or f"{self._private}/s"
        if self._embedded:
            self._brokers = _free_address()
        supervisor = Supervisor([binary, *self._flags()], self._environment(), self._socket_path)
        try:
            supervisor.start(self._ready_timeout)
        except SidecarStartError as e:
            if self._attach and any(_HELD in line for line in e.log):
                self._await_other(e)  # another process was faster
                return
            raise
        self._supervisor = supervisor

    def _await_other(self, refused: SidecarStartError) -> None:
        by = time.monotonic() + self._ready_timeout
        while not probe(self.socket_path).ready:
            if time.monotonic() >= by:
                raise refused
            time.sleep(_LOOK)

    def _flags(self) -> list[str]:
        data_dir = self._data_dir or (f"{self._private}/data" if self._embedded else None)
        settings = {"--socket": self._socket_path, "--data-dir": data_dir, "--brokers": self._brokers}
        flags = [part for name, value in settings.items() if value for part in (name, value)]
        # Ours come last: the last of two wins, and the log must be read by us.
        return ["run", *self._args, *flags, *(["--embedded-broker"] if self._embedded else []), "--log-format", "json"]

    def _environment(self) -> dict[str, str]:
        """Let the sidecar's own limit of draining come before ours, unless one was chosen."""
        drain = max(self._stop_timeout - 5, self._stop_timeout / 2)
        return {"SIDECAR_SHUTDOWN_TIMEOUT": f"{drain:.3f}s", **self._env}

    def _close_idle(self) -> None:
        for client in list(self._clients):
            client.close()

    def _forget(self) -> None:
        self._supervisor, self._socket_path = None, self._given_socket
        if self._private is not None:
            private, self._private = self._private, None
            shutil.rmtree(private)


def _private_directory() -> str:
    """Make a directory that only we may enter, with a path that leaves room for a socket's name."""
    tried = []
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        if len(os.fsencode(f"{parent}/{_PREFIX}/s")) + _RANDOM > MAX_PATH_BYTES:
            tried.append(f"{parent} is too long for a socket's path ({MAX_PATH_BYTES} bytes)")
            continue
        try:
            return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        except OSError as e:
            tried.append(f"{parent}: {e}")
    raise SidecarStartError(f"no directory for the socket: {'; '.join(tried)}. Give socket_path, or another TMPDIR")


def _free_address() -> str:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{chosen.getsockname()[1]}"
