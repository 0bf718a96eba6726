"""A wait in a task that ends when the task is told to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
            raise WorkflowWaitKilled(
                f"the task was told to end while it waited for the result of {self._awaited}; the workflow goes on. "
                "A retry waits for it again; Clear triggers it anew."
            )
