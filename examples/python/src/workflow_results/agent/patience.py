"""A client of the sidecar that never gives up."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import UUID

from workflow_results.agent.logs import Interval, say
from workflow_results.aio import AsyncSidecarClient
from workflow_results.errors import ResultRejected, SidecarUnavailable
from workflow_results.receipt import Receipt

ATTEMPT = 5.0  # seconds of trying before anything is logged
INTERVAL = 10.0  # seconds between the lines about a sidecar that is away


class PatientSidecarClient(AsyncSidecarClient):
    """Repeats every call for ever: a result of hours must not be lost because the sidecar is away for a minute."""

    def __init__(self, socket_path: str) -> None:
        """Remember where the sidecar is."""
        super().__init__(socket_path, deadline=ATTEMPT)
        self._away_since: float | None = None
        self._line = Interval(INTERVAL)

    async def publish(self, **fields: Any) -> Receipt:
        """Hand over one result, as ``AsyncSidecarClient.publish`` does, however long it takes.

        The caller must give it an ``event_id``: one that was made anew for each
        try would store the result more than once.
        """
        if not fields.get("event_id"):
            raise ValueError("event_id is required: the result may be sent more than once")
        while True:
            try:
                receipt = await super().publish(**fields)
            except SidecarUnavailable as e:
                self._away(e)
            else:
                self._back()
                return receipt

    async def holds(self, event_id: str | UUID) -> bool:
        """Tell whether the sidecar holds a result, however long it takes to hear.

        Raises:
            ResultRejected: it refuses to tell.
        """
        while True:
            try:
                await self.get(event_id)
            except SidecarUnavailable as e:
                self._away(e)
            except ResultRejected as e:
                self._back()
                if e.status != 404:
                    raise
                return False
            else:
                self._back()
                return True

    def _away(self, error: SidecarUnavailable) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic() - ATTEMPT
        if self._line.due():
            seconds = round(time.monotonic() - self._away_since)
            say(logging.WARNING, "the sidecar does not answer; trying on", socket=error.socket_path,
                seconds=seconds, cause=error.cause)  # fmt: skip

    def _back(self) -> None:
        if self._away_since is not None:
            seconds = round(time.monotonic() - self._away_since)
            say(logging.INFO, "the sidecar answers again", seconds=seconds)
            self._away_since = None
