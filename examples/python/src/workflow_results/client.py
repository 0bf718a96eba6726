"""The client that blocks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from workflow_results import _protocol
from workflow_results._http import Request, Response
from workflow_results._protocol import DEFAULT_SOCKET, Status
from workflow_results._transport import Transport
from workflow_results.encoding import Dumps, dumps
from workflow_results.errors import ResultRejected
from workflow_results.receipt import Receipt

__all__ = ["DEFAULT_SOCKET", "Receipt", "SidecarClient", "Status"]


class SidecarClient:
    """Hands results to the sidecar. Thread-safe, fork-safe, connections are kept.

    Every call is repeated until its deadline when the sidecar is away or busy.
    A result is sent again with the same ``event_id``, so it is stored once.

    Args:
        socket_path: the sidecar's Unix socket; default ``$SIDECAR_SOCKET``.
        deadline: seconds after which a call gives up, beside any wait for publication.
        attempt_timeout: seconds after which one attempt is given up and the
            next one made, beside any wait for publication.
        dumps: writes JSON in place of this package's own encoding.

    Raises:
        ValueError: the path is longer than the system allows (107 bytes).
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        deadline: float = 30.0,
        attempt_timeout: float = 10.0,
        dumps: Dumps = dumps,
    ) -> None:
        """Remember where the sidecar is; nothing is opened yet."""
        self._settings = _protocol.Settings.of(socket_path, deadline, attempt_timeout, dumps)
        self._transport = Transport(self._settings.path)

    def publish(
        self,
        *,
        correlation_id: str | UUID,
        workflow_id: str,
        workflow_run_id: str,
        result: Mapping[str, Any] | Any | None = None,
        status: Status = "success",
        error: str | None = None,
        event_id: str | UUID | None = None,
        timestamp: datetime | None = None,
        wait_published: float | None = None,
        deadline: float | None = None,
        traceparent: str | None = None,
    ) -> Receipt:
        """Hand over one result; returns when it is on the sidecar's disk.

        Args:
            correlation_id: the event ID of the trigger.
            workflow_id: which workflow this is a result of.
            workflow_run_id: which run of it.
            result: becomes a JSON object; required for ``success``.
            status: ``failure``: the workflow decided so; ``error``: it broke.
            error: what broke; required for ``error``.
            event_id: identity of this result; a new one if left out.
            timestamp: aware; the time of acceptance if left out.
            wait_published: seconds to wait until Kafka has it.
            deadline: seconds after which to give up, beside ``wait_published``.
            traceparent: W3C Trace Context, carried into the Kafka record.

        Raises:
            ResultRejected: it will never be accepted as it is (422, 409, 413, …).
            SidecarUnavailable: no settling answer before the deadline.
            SidecarError: the answer is none of a sidecar.
            TypeError, ValueError: the result cannot be written as JSON.
        """
        request = _protocol.publish_request(
            self._settings,
            correlation_id=correlation_id,
            workflow_id=workflow_id,
            workflow_run_id=workflow_run_id,
            result=result,
            status=status,
            error=error,
            event_id=event_id,
            timestamp=timestamp,
            wait_published=wait_published,
            traceparent=traceparent,
        )
        return _protocol.receipt(self._settle(request, _protocol.by_deadline(self._settings, deadline)))

    def publish_many(
        self,
        events: Iterable[Mapping[str, Any]],
        *,
        wait_published: float | None = None,
        deadline: float | None = None,
    ) -> list[Receipt | ResultRejected]:
        """Hand over several results in one commit, at most 4096.

        Args:
            events: each with the fields of an event (as ``publish`` names them);
                an ``event_id`` is made where there is none.
            wait_published: seconds to wait until Kafka has them.
            deadline: seconds after which to give up, beside ``wait_published``.

        Returns:
            For each event, in order, its receipt or why it was rejected.

        Raises:
            SidecarUnavailable: no settling answer for all of them before the deadline.
            ResultRejected: the batch as a whole is refused, as too large for one.
            SidecarError: the answer is none of a sidecar.
            TypeError, ValueError: a result cannot be written as JSON; none was sent.
        """
        by = _protocol.by_deadline(self._settings, deadline)
        batch = _protocol.Batch(self._settings, events, wait_published, by)
        while (request := batch.request()) is not None:
            time.sleep(batch.take(self._settle(request, by)))
        return batch.outcomes()

    def get(self, event_id: str | UUID) -> dict[str, Any]:
        """Tell what the sidecar knows of a result.

        Raises:
            ResultRejected: with status 404, it knows nothing of it.
            SidecarUnavailable: no settling answer before the deadline.
        """
        return self._document(_protocol.get_request(event_id))

    def list(
        self,
        *,
        correlation_id: str | UUID | None = None,
        state: str | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """List results in the order of their publication, one page: ``limit`` of those with a seq above ``after``."""
        return _protocol.results(self._document(_protocol.list_request(correlation_id, state, after, limit)))

    def status(self) -> dict[str, Any]:
        """Return the sidecar's own account of itself."""
        return self._document(_protocol.status_request())

    def close(self) -> None:
        """Close the kept connections; a later call opens a new one."""
        self._transport.pool.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the kept connections."""
        self.close()

    def _document(self, request: Request) -> dict[str, Any]:
        return _protocol.document(self._settle(request, _protocol.by_deadline(self._settings, None)))

    def _settle(self, request: Request, by: float) -> Response:
        """Repeat a request until an answer settles it."""
        course = _protocol.Course(self._settings, request, by)
        while True:
            try:
                response = self._transport.request(request, course.begin())
            except _protocol.TROUBLE as e:
                pause = course.broke(e)
            else:
                judged = course.judge(response)
                if judged is None:
                    return response
                pause = judged
            time.sleep(pause)
