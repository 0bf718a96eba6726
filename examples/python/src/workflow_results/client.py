"""The synchronous client of the sidecar."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID, uuid4

from workflow_results._transport import Response, Transport
from workflow_results.encoding import Dumps, dumps
from workflow_results.errors import ResultRejected, SidecarError, SidecarUnavailable, rejection

DEFAULT_SOCKET = "/run/workflow-results/sidecar.sock"
Status = Literal["success", "failure", "error"]

_FIRST_BACKOFF = 0.05  # seconds
_MAX_BACKOFF = 2.0
_ANSWER_TIMEOUT = 30.0  # of one attempt, beside any wait for publication


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


class SidecarClient:
    """Hands results to the sidecar. Thread-safe, fork-safe, connections are kept.

    Every call is repeated until its deadline when the sidecar is away or busy.
    A result is sent again with the same ``event_id``, so it is stored once.

    Args:
        socket_path: the sidecar's Unix socket; default ``$SIDECAR_SOCKET``.
        deadline: seconds after which a call gives up.
        dumps: writes JSON in place of this package's own encoding.

    Raises:
        ValueError: the path is longer than the system allows (107 bytes).
    """

    def __init__(self, socket_path: str | None = None, *, deadline: float = 30.0, dumps: Dumps = dumps) -> None:
        """Remember where the sidecar is; nothing is opened yet."""
        path = socket_path or os.environ.get("SIDECAR_SOCKET") or DEFAULT_SOCKET
        self._transport = Transport(os.fspath(path))
        self._deadline = deadline
        self._dumps = dumps

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
            result: becomes a JSON object; required for ``success``.
            status: ``failure``: the workflow decided so; ``error``: it broke.
            error: what broke; required for ``error``.
            event_id: identity of this result; a new one if left out.
            timestamp: aware; the time of acceptance if left out.
            wait_published: seconds to wait until Kafka has it.
            deadline: seconds after which to give up.
            traceparent: W3C Trace Context, carried into the Kafka record.

        Raises:
            ResultRejected: it will never be accepted as it is (422, 409, 413, …).
            SidecarUnavailable: no settling answer before the deadline.
            TypeError, ValueError: the result cannot be written as JSON.
        """
        event: dict[str, Any] = {
            "event_id": str(event_id or uuid4()),
            "correlation_id": str(correlation_id),
            "workflow_id": workflow_id,
            "workflow_run_id": workflow_run_id,
            "status": status,
            "error": error,
        }
        if result is not None:
            event["result"] = result
        if timestamp is not None:
            event["timestamp"] = timestamp.isoformat()
        headers = {"Content-Type": "application/json"}
        if traceparent:
            headers["traceparent"] = traceparent
        response = self._settle(
            "POST",
            "/v1/results" + _wait(wait_published),
            self._encode(event),
            headers,
            wait_published,
            deadline,
            event["event_id"],
        )
        return _receipt(_document(response))

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

        Returns:
            For each event, in order, its receipt or why it was rejected.

        Raises:
            SidecarUnavailable: no settling answer before the deadline.
        """
        lines = [self._encode({"event_id": str(uuid4()), **event}) for event in events]
        if not lines:
            return []
        by_deadline = time.monotonic() + (self._deadline if deadline is None else deadline)
        outcomes: dict[int, Receipt | ResultRejected] = {}
        pending = list(range(len(lines)))
        attempts = 0
        while True:
            attempts += 1
            body = b"\n".join(lines[i] for i in pending)
            left = max(by_deadline - time.monotonic(), 0.001)
            response = self._settle(
                "POST",
                "/v1/results:batch" + _wait(wait_published),
                body,
                {"Content-Type": "application/x-ndjson"},
                wait_published,
                left,
            )
            answers = [json.loads(text) for text in response.body.splitlines()]
            if len(answers) != len(pending):
                raise SidecarError(f"the sidecar answered {len(answers)} lines for {len(pending)}")
            again = []
            for i, answer in zip(pending, answers, strict=True):
                if answer["status"] < 300:
                    outcomes[i] = _receipt(answer)
                elif answer["status"] < 500:
                    outcomes[i] = rejection(answer["status"], answer["problem"])
                else:  # the outbox was full, for this line: again with the same event_id
                    again.append(i)
                    cause = str(answer["problem"].get("detail", answer["status"]))
            if not again:
                return [outcomes[i] for i in range(len(lines))]
            pending = again
            if not _sleep_before(by_deadline, _backoff(attempts)):
                raise SidecarUnavailable(
                    self._transport.path, attempts, f"{len(pending)} of {len(lines)} results: {cause}"
                )

    def get(self, event_id: str | UUID) -> dict[str, Any]:
        """Tell what the sidecar knows of a result.

        Raises:
            ResultRejected: with status 404, it knows nothing of it.
        """
        return _document(self._settle("GET", f"/v1/results/{event_id}", None, {}, None, None))

    def list(
        self,
        *,
        correlation_id: str | UUID | None = None,
        state: str | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """List results in the order of their publication, one page."""
        query = f"?after={after}&limit={limit}"
        if correlation_id is not None:
            query += f"&correlation_id={correlation_id}"
        if state is not None:
            query += f"&state={state}"
        page = _document(self._settle("GET", "/v1/results" + query, None, {}, None, None))
        return list(page["results"])

    def status(self) -> dict[str, Any]:
        """Return the sidecar's own account of itself."""
        return _document(self._settle("GET", "/v1/status", None, {}, None, None))

    def close(self) -> None:
        """Close the kept connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the kept connections."""
        self.close()

    def _encode(self, event: Mapping[str, Any]) -> bytes:
        text = self._dumps(event)
        return text if isinstance(text, bytes) else text.encode()

    def _settle(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: dict[str, str],
        wait: float | None,
        deadline: float | None,
        event_id: str | None = None,
    ) -> Response:
        """Repeat a request until an answer settles it: 2xx, or 4xx other than 429."""
        by = time.monotonic() + (self._deadline if deadline is None else deadline)
        attempts = 0
        while True:
            attempts += 1
            pause = _backoff(attempts)
            try:
                timeout = min(_ANSWER_TIMEOUT, max(by - time.monotonic(), 0.1)) + (wait or 0)
                response = self._transport.request(method, target, body, headers, timeout)
            except (OSError, http.client.HTTPException) as e:
                cause = f"{type(e).__name__}: {e}"
            else:
                if response.status < 300:
                    return response
                problem = _problem(response)
                if response.status < 500 and response.status != 429:
                    raise rejection(response.status, problem)
                cause = f"{response.status} {problem.get('detail') or problem.get('title')}"
                if response.retry_after is not None:
                    pause = response.retry_after
            if not _sleep_before(by, pause):
                raise SidecarUnavailable(self._transport.path, attempts, cause, event_id)


def _backoff(attempts: int) -> float:
    """Seconds before the next attempt: the first comes at once (a stale connection), then doubling with jitter."""
    if attempts == 1:
        return 0.0
    return float(min(_FIRST_BACKOFF * 2 ** min(attempts, 10), _MAX_BACKOFF) * random.uniform(0.5, 1.0))


def _sleep_before(by: float, pause: float) -> bool:
    """Sleep, unless the deadline comes first."""
    if time.monotonic() + pause >= by:
        return False
    time.sleep(pause)
    return True


def _wait(seconds: float | None) -> str:
    return "" if seconds is None else f"?wait=published&timeout={max(int(seconds * 1000), 1)}ms"


def _document(response: Response) -> dict[str, Any]:
    document = json.loads(response.body)
    if not isinstance(document, dict):
        raise SidecarError(f"the sidecar answered {response.status} with something that is no JSON object")
    return document


def _problem(response: Response) -> dict[str, Any]:
    try:
        return _document(response)
    except ValueError:
        return {"title": http.client.responses.get(response.status, "")}


def _receipt(answer: Mapping[str, Any]) -> Receipt:
    return Receipt(
        event_id=answer["event_id"],
        seq=answer["seq"],
        state=answer["state"],
        duplicate=answer["duplicate"],
        topic=answer.get("topic"),
        partition=answer.get("partition"),
        offset=answer.get("offset"),
        reason=answer.get("reason"),
    )
