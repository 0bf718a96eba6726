"""The client for asyncio.

It reads and writes the socket through the loop, without a transport of asyncio's:
such a transport throws away what it has not read when a write fails, and that is
the answer to a result that is too large.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID
from weakref import WeakKeyDictionary

from workflow_results import _protocol
from workflow_results._http import AnswerParser, Request, Response
from workflow_results._protocol import Status
from workflow_results._transport import RECEIVE_BYTES, Pool, StaleConnection, is_stale
from workflow_results.encoding import Dumps, dumps
from workflow_results.errors import ResultRejected
from workflow_results.receipt import Receipt

# Connections per loop; the sidecar lets 1024 in, from all its clients. Who waits for publication holds one for as
# long, and must not keep the others out.
_MAX_AT_ONCE = 64
_MAX_WAITING = 448


class AsyncTransport:
    """Requests that await, on kept connections. Serves several loops, one after another or in threads of their own."""

    def __init__(self, path: str) -> None:
        """Take the socket's path; nothing is opened yet."""
        self.pool = Pool(path)
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()

    @contextlib.asynccontextmanager
    async def turn(self, request: Request, timeout: float) -> AsyncIterator[None]:
        """Wait until this client may have one connection more: `request` is for within.

        Raises:
            TimeoutError: none came free in ``timeout`` seconds; nothing was sent.
        """
        turns = self._turns_here()
        most, free = (_MAX_WAITING, turns.waiting) if request.wait else (_MAX_AT_ONCE, turns.at_once)
        try:
            async with asyncio.timeout(timeout):
                await free.acquire()
        except TimeoutError as e:
            raise TimeoutError(f"all {most} connections of this client are in use; nothing was sent") from e
        try:
            yield
        finally:
            free.release()

    async def request(self, request: Request, timeout: float) -> Response:
        """Send one request and read the whole answer, both within ``timeout`` seconds.

        When it is cancelled its connection is closed: half an answer must never
        be taken for the beginning of the next.

        Raises:
            OSError, BrokenAnswer: whatever broke; the request may or may not
                have been carried out.
        """
        async with asyncio.timeout(timeout):
            try:
                return await self._attempt(request, self.pool.take())
            except StaleConnection:
                self.pool.close()  # the others are as old
                return await self._attempt(request, None)

    def _turns_here(self) -> _Turns:
        loop = asyncio.get_running_loop()
        if loop not in self._turns:
            for other in [ref() for ref in self._turns.keyrefs()]:
                # A semaphore that somebody had to wait for holds its loop, which would stay here for good.
                if other is not None and other.is_closed():
                    self._turns.pop(other, None)
        return self._turns.setdefault(loop, _Turns())

    async def _attempt(self, request: Request, kept: socket.socket | None) -> Response:
        sock = self.pool.connect() if kept is None else kept
        parser = AnswerParser()
        try:
            response = await _exchange(sock, bytes(request), parser)
        except BaseException as e:
            sock.close()
            if is_stale(e, kept is not None, parser):
                raise StaleConnection from e
            raise
        if response.keep:
            self.pool.give_back(sock)
        else:
            sock.close()
        return response


async def _exchange(sock: socket.socket, data: bytes, parser: AnswerParser) -> Response:
    loop = asyncio.get_running_loop()
    # A body that is too large is answered before all of it is read: the answer is there all the same.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await loop.sock_sendall(sock, data)
    while True:
        if (response := parser.feed(await loop.sock_recv(sock, RECEIVE_BYTES))) is not None:
            return response


class _Turns:
    """One loop's."""

    def __init__(self) -> None:
        self.at_once = asyncio.Semaphore(_MAX_AT_ONCE)
        self.waiting = asyncio.Semaphore(_MAX_WAITING)


class AsyncSidecarClient:
    """``SidecarClient`` for asyncio: the same methods, as coroutines, with the same meaning.

    One client serves any number of tasks, and may be used from several event
    loops. A call that is cancelled may or may not have been carried out; to hand
    the result over again, use the ``event_id`` that it was given.

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
        """Remember where the sidecar is; nothing is opened yet, no loop is needed."""
        self._settings = _protocol.Settings.of(socket_path, deadline, attempt_timeout, dumps)
        self._transport = AsyncTransport(self._settings.path)

    async def publish(
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
        """Hand over one result, as ``SidecarClient.publish`` does, with its arguments and errors."""
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
        return _protocol.receipt(await self._settle(request, _protocol.by_deadline(self._settings, deadline)))

    async def publish_many(
        self,
        events: Iterable[Mapping[str, Any]],
        *,
        wait_published: float | None = None,
        deadline: float | None = None,
    ) -> list[Receipt | ResultRejected]:
        """Hand over several results in one commit, as ``SidecarClient.publish_many`` does."""
        by = _protocol.by_deadline(self._settings, deadline)
        batch = _protocol.Batch(self._settings, events, wait_published, by)
        while (request := batch.request()) is not None:
            await asyncio.sleep(batch.take(await self._settle(request, by)))
        return batch.outcomes()

    async def get(self, event_id: str | UUID) -> dict[str, Any]:
        """Tell what the sidecar knows of a result; ``ResultRejected`` with status 404 if nothing."""
        return await self._document(_protocol.get_request(event_id))

    async def list(
        self,
        *,
        correlation_id: str | UUID | None = None,
        state: str | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """List results in the order of their publication, one page: ``limit`` of those with a seq above ``after``."""
        return _protocol.results(await self._document(_protocol.list_request(correlation_id, state, after, limit)))

    async def status(self) -> dict[str, Any]:
        """Return the sidecar's own account of itself."""
        return await self._document(_protocol.status_request())

    async def close(self) -> None:
        """Close the kept connections; a later call opens a new one."""
        self._transport.pool.close()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the kept connections."""
        await self.close()

    async def _document(self, request: Request) -> dict[str, Any]:
        return _protocol.document(await self._settle(request, _protocol.by_deadline(self._settings, None)))

    async def _settle(self, request: Request, by: float) -> Response:
        """Repeat a request until an answer settles it."""
        course = _protocol.Course(self._settings, request, by)
        while True:
            try:
                async with self._transport.turn(request, course.left()):
                    response = await self._transport.request(request, course.begin())
            except _protocol.TROUBLE as e:
                pause = course.broke(e)
            else:
                judged = course.judge(response)
                if judged is None:
                    return response
                pause = judged
            await asyncio.sleep(pause)
