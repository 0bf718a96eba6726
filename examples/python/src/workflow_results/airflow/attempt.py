"""Which trigger a task waits for: written down before it is published, so that a retry finds it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Self
from uuid import UUID, uuid4, uuid5

from workflow_results.position import Position

NAMESPACE = UUID("6f2d0f6e-52a4-4b0e-9a35-3b1c6a0de9b7")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One trigger of a task, and how far it has come.

    Attributes:
        generation: how many triggers of this task were answered with failure or error before.
        event_id: of the trigger; the correlation ID of the result.
        position: where the results ended before it was published; None: not known.
        published: Kafka has confirmed it. If we crash before this is written, it is published again under the same
            ID, which the workflow's side takes for one trigger.
        consumed: its failure or error was told; a retry is another trigger.
    """

    generation: int
    event_id: str
    position: Position | None
    published: bool = False
    consumed: bool = False


class Store(Protocol):
    """What is used of Airflow's task state store; it outlives a try, and Clear."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value."""

    def set(self, key: str, value: Any) -> None:
        """Write a value."""


class Ledger:
    """Where a task's attempt is written down.

    A retry finds it; a Clear does not, since it begins another epoch: Airflow
    raises ``max_tries`` then, and leaves it alone at a retry.
    """

    def __init__(self, identity: list[Any], store: Store | None = None, key: str = "", retry: bool = False) -> None:
        """Keep what makes this task's IDs its own.

        Args:
            identity: JSON; equal in all tries, and nowhere else.
            store: where to write; None: nothing is remembered.
            key: under which to write.
            retry: an earlier try may have published already.
        """
        self._identity = identity
        self._store = store
        self._key = key
        self._retry = retry

    @classmethod
    def of_task(cls, context: Mapping[str, Any], name: str) -> Self:
        """Return the ledger of a running task; ``name`` tells several waits of one task apart."""
        ti = context["ti"]
        epoch = ti.max_tries - (ti.task.retries or 0)
        # The start tells this run from one of the same name that was deleted, or that is in another Airflow.
        start = context["dag_run"].start_date
        run = [ti.dag_id, ti.run_id, start.isoformat() if start else None]
        identity = [*run, ti.task_id, ti.map_index, name, epoch]
        key = f"workflow_results.{name}.{epoch}"
        return cls(identity, context.get("task_state_store"), key, retry=ti.try_number > epoch + 1)

    @classmethod
    def of_nobody(cls) -> Self:
        """Return the ledger of code that is no task: its IDs are new ones."""
        return cls([str(uuid4())])

    def open(self) -> Attempt | None:
        """Return the attempt that is not answered yet, or answered with success; None: there is none."""
        if self._store is None:
            # Airflow before 3.3: an earlier try may have published this very ID; from when on is not known.
            return Attempt(0, self._event_id(0), None) if self._retry else None
        written = self._read()
        return None if written is None or written.consumed else written

    def begin(self, position: Position) -> Attempt:
        """Write down a new attempt, which is to be published now."""
        last = self._read()
        generation = 0 if last is None else last.generation + 1
        return self._write(Attempt(generation, self._event_id(generation), position))

    def published(self, attempt: Attempt) -> Attempt:
        """Write down that Kafka has the trigger."""
        return self._write(replace(attempt, published=True))

    def consumed(self, correlation_id: str) -> None:
        """Write down that the failure or error of a trigger was told."""
        written = self._read()
        if written is not None and written.event_id == correlation_id:
            self._write(replace(written, consumed=True))

    def _read(self) -> Attempt | None:
        written = None if self._store is None else self._store.get(self._key)
        return None if written is None else Attempt(**written)

    def _write(self, attempt: Attempt) -> Attempt:
        if self._store is not None:
            self._store.set(self._key, asdict(attempt))
        return attempt

    def _event_id(self, generation: int) -> str:
        return str(uuid5(NAMESPACE, json.dumps([*self._identity, generation])))
