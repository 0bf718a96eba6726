"""Waits in a task that end when the task is told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from workflow_results.airflow.errors import WorkflowWaitKilled


class KillableWait:
    """For operators: `on_kill` ends a wait that is under way.

    Airflow calls ``on_kill`` from a signal handler of the thread that waits, and
    does nothing else to end the task. So what is raised there ends the wait,
    which deregisters itself, and Airflow retries the task if it may.
    """

    _awaited: str | None = None

    @contextmanager
    def _waiting_for(self, correlation_id: str) -> Iterator[None]:
        self._awaited = correlation_id
        try:
            yield
        finally:
            self._awaited = None

    def on_kill(self) -> None:
        """End the wait; the workflow itself goes on.

        Raises:
            WorkflowWaitKilled: into the wait; nothing if there is none.
        """
        if self._awaited is not None:
            raise _killed(self._awaited)


@contextmanager
def killable_wait(correlation_id: str) -> Iterator[None]:
    """End a wait in a function when the task gets SIGTERM, once Airflow's own handler has done its part.

    Without a handler, and outside the main thread, nothing is changed.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        before(number, frame)
        raise _killed(correlation_id)

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _killed(correlation_id: str) -> WorkflowWaitKilled:
    return WorkflowWaitKilled(
        f"the task was told to end while it waited for the result of {correlation_id}; the workflow goes on. "
        "A retry waits for it again; Clear triggers it anew."
    )
