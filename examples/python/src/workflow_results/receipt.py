"""What the sidecar answers when it has taken a result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Receipt:
    """The sidecar's answer: the result is on its disk.

    ``state`` is ``pending`` or ``published`` (or ``parked``, with ``reason``).
    ``topic``, ``partition`` and ``offset`` are known once it is published.
    """

    event_id: str
    seq: int
    state: str
    duplicate: bool
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    reason: str | None = None
