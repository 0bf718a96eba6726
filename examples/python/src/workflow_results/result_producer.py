"""A producer of results with the shape that callers of a Kafka producer know: start, publish, stop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from workflow_results._protocol import Status
from workflow_results.aio import AsyncSidecarClient
from workflow_results.receipt import Receipt


class ResultProducer:
    """Publishes workflow results through the sidecar.

    Args:
        socket_path: the sidecar's Unix socket; default ``$SIDECAR_SOCKET``.
        **options: those of ``AsyncSidecarClient``.
    """

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Remember where the sidecar is; nothing is opened before ``start``."""
        self._client = AsyncSidecarClient(socket_path, **options)
        self._started = False

    async def start(self) -> None:
        """Wait until the sidecar answers, so that a wrong path shows here and not with the first result.

        Raises:
            SidecarUnavailable: it does not answer before the client's deadline.
        """
        await self._client.status()
        self._started = True

    async def stop(self) -> None:
        """Close the connections. Nothing is lost: what was published is on the sidecar's disk."""
        self._started = False
        await self._client.close()

    async def publish_result(
        self,
        correlation_id: str | UUID,
        workflow_id: str,
        workflow_run_id: str,
        result: Mapping[str, Any] | Any | None,
        status: Status = "success",
        error: str | None = None,
        *,
        event_id: str | UUID | None = None,
    ) -> Receipt:
        """Publish one result; returns when it is on the sidecar's disk.

        Args:
            correlation_id: the event ID of the trigger.
            workflow_id: which workflow this is a result of.
            workflow_run_id: which run of it.
            result: becomes a JSON object; required for ``success``.
            status: ``failure``: the workflow decided so; ``error``: it broke.
            error: what broke; required for ``error``.
            event_id: identity of this result, for a caller who may publish it again; a new one if left out.

        Raises:
            RuntimeError: the producer is not started.
            ResultRejected: it will never be accepted as it is (422, 409, 413, …).
            SidecarUnavailable: no settling answer before the deadline.
            TypeError, ValueError: the result cannot be written as JSON.
        """
        if not self._started:
            raise RuntimeError("the producer is not started: await start() first")
        return await self._client.publish(
            correlation_id=correlation_id,
            workflow_id=workflow_id,
            workflow_run_id=workflow_run_id,
            result=result,
            status=status,
            error=error,
            event_id=event_id,
        )

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        await self.stop()
