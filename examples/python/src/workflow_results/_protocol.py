"""What both clients share, without I/O: requests, the judging of answers, and when to try again."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

from workflow_results._http import BrokenAnswer, Request, Response
from workflow_results.encoding import Dumps
from workflow_results.errors import ResultRejected, SidecarError, SidecarUnavailable, rejection
from workflow_results.receipt import Receipt

DEFAULT_SOCKET = "/run/workflow-results/sidecar.sock"
MAX_PATH_BYTES = 107  # sun_path on Linux without its closing NUL, unix(7)
TROUBLE = (OSError, BrokenAnswer)  # what may break an attempt and be gone at the next
Status = Literal["success", "failure", "error"]

_FIRST_BACKOFF = 0.05  # seconds
_MAX_BACKOFF = 2.0
_LEAST_ATTEMPT = 1.0  # a commit on a busy disk takes as long


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client was told, checked."""

    path: str
    deadline: float  # seconds
    attempt_timeout: float  # seconds
    dumps: Dumps

    @classmethod
    def of(cls, path: str | os.PathLike[str] | None, deadline: float, attempt_timeout: float, dumps: Dumps) -> Settings:
        """Find the socket's path and check it, so that a wrong one shows before the first result is lost.

        Raises:
            ValueError: the path is longer than the system allows.
        """
        found = os.fspath(path or os.environ.get("SIDECAR_SOCKET") or DEFAULT_SOCKET)
        if (size := len(os.fsencode(found))) > MAX_PATH_BYTES:
            raise ValueError(f"the socket path has {size} bytes, the system allows {MAX_PATH_BYTES}: {found}")
        return cls(found, deadline, attempt_timeout, dumps)

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """Write one event as JSON.

        Raises:
            TypeError, ValueError: it cannot be written; also whatever else ``dumps`` raised.
        """
        try:
            text = self.dumps(event)
            return text if isinstance(text, bytes) else text.encode()
        except (TypeError, ValueError):
            raise
        except Exception as e:
            raise ValueError(f"cannot write the result as JSON: {type(e).__name__}: {e}") from e


# Requests.


def publish_request(
    settings: Settings,
    *,
    correlation_id: str | UUID,
    workflow_id: str,
    workflow_run_id: str,
    result: Any,
    status: Status,
    error: str | None,
    event_id: str | UUID | None,
    timestamp: datetime | None,
    wait_published: float | None,
    traceparent: str | None,
) -> Request:
    """Make the request that hands over one result. It has its event_id before the first attempt."""
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
    target = "/v1/results" + _wait(wait_published)
    return Request("POST", target, settings.encode(event), headers, wait_published or 0.0, event["event_id"])


def get_request(event_id: str | UUID) -> Request:
    """Ask what is known of a result."""
    return Request("GET", "/v1/results/" + quote(str(event_id), safe=""))


def list_request(correlation_id: str | UUID | None, state: str | None, after: int, limit: int) -> Request:
    """Ask for one page of results."""
    wanted = {"after": after, "limit": limit, "correlation_id": correlation_id, "state": state}
    query = urlencode({name: str(value) for name, value in wanted.items() if value is not None})
    return Request("GET", f"/v1/results?{query}")


def status_request() -> Request:
    """Ask how the sidecar is."""
    return Request("GET", "/v1/status")


def _wait(seconds: float | None) -> str:
    return "" if seconds is None else f"?wait=published&timeout={max(int(seconds * 1000), 1)}ms"


# Answers.


def receipt(response: Response) -> Receipt:
    """Read the receipt of one result."""
    return receipt_of(document(response))


def receipt_of(answer: Mapping[str, Any]) -> Receipt:
    """Read a receipt out of what has its fields: an answer, a line of one, or what is held.

    Raises:
        SidecarError: fields are missing.
    """
    try:
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
    except KeyError as e:
        raise SidecarError(f"the sidecar answered with a receipt that lacks {e}: is it this package's sidecar?") from e


def document(response: Response) -> dict[str, Any]:
    """Read an answer that is one JSON object.

    Raises:
        SidecarError: it is none.
    """
    return _object(response.body, f"the sidecar answered {response.status} with")


def results(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read a page of the results that the sidecar holds.

    Raises:
        SidecarError: it is none.
    """
    found = answer.get("results")
    if not isinstance(found, list):
        raise SidecarError("the sidecar answered with no list of results: is it this package's sidecar?")
    return found


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text.decode())  # of bytes it would look for UTF-16 first
    except ValueError as e:  # not JSON, or not UTF-8
        raise SidecarError(f"{what} something that is no JSON: {text[:100]!r}") from e
    if not isinstance(found, dict):
        raise SidecarError(f"{what} something that is no JSON object: {text[:100]!r}")
    return found


def _problem(response: Response) -> dict[str, Any]:
    """Read an error's problem document; where there is none, the status says what can be said."""
    try:
        return document(response)
    except SidecarError:
        return {"title": next((known.phrase for known in HTTPStatus if known == response.status), "an unknown status")}


def passes(status: int) -> bool:
    """Tell whether the same request may succeed later: nothing was stored (408, 429), or it is unknown (5xx)."""
    return status >= 500 or status in (408, 429)


# When to try again.


def by_deadline(settings: Settings, deadline: float | None) -> float:
    """Return the moment (of time.monotonic) at which a call gives up."""
    return time.monotonic() + (settings.deadline if deadline is None else deadline)


class Course:
    """One request on its way to the answer that settles it: 2xx, or a 4xx that no repetition changes."""

    def __init__(self, settings: Settings, request: Request, by: float) -> None:
        """Begin before the first attempt; ``by`` is the moment to give up."""
        self._settings = settings
        self._request = request
        self._by = by
        self._attempts = 0

    def begin(self) -> float:
        """Begin an attempt; returns the seconds that it may take: one that hears nothing leaves time for another."""
        self._attempts += 1
        left = self.left()
        return min(self._settings.attempt_timeout, max(left / 2, _LEAST_ATTEMPT), left) + self._request.wait

    def left(self) -> float:
        """Return the seconds until the moment to give up; always enough to try at all."""
        return max(self._by - time.monotonic(), 0.1)

    def broke(self, error: Exception) -> float:
        """Take what broke the attempt; returns the seconds to pause before the next.

        Raises:
            SidecarUnavailable: there is no time for a next one.
        """
        return self._pause(backoff(self._attempts), f"{type(error).__name__}: {str(error) or 'no answer in time'}")

    def judge(self, response: Response) -> float | None:
        """Judge an answer; returns None if it settles the request, or else the seconds to pause.

        Raises:
            ResultRejected: it is refused, and would be refused again.
            SidecarUnavailable: there is no time for another attempt.
        """
        if response.status < 300:
            return None
        problem = _problem(response)
        if not passes(response.status):
            raise rejection(response.status, problem)
        pause = max(backoff(self._attempts), response.retry_after or 0.0)
        return self._pause(pause, f"{response.status} {problem.get('detail') or problem.get('title')}")

    def _pause(self, pause: float, cause: str) -> float:
        if time.monotonic() + pause >= self._by:
            raise SidecarUnavailable(self._settings.path, self._attempts, cause, self._request.event_id)
        return pause


def backoff(attempts: int) -> float:
    """Seconds before the next attempt: doubling from 0.05 to 2, with jitter."""
    return min(_FIRST_BACKOFF * 2.0 ** min(attempts - 1, 10), _MAX_BACKOFF) * random.uniform(0.5, 1.0)


class Batch:
    """Several results on their way: those whose lines may succeed later are sent again, with the same event_id."""

    def __init__(self, settings: Settings, events: Iterable[Mapping[str, Any]], wait: float | None, by: float) -> None:
        """Write each event, with an event_id of its own: without one, a repetition would be stored twice."""
        self._settings = settings
        self._lines = [_line(settings, event) for event in events]
        self._wait = wait
        self._by = by
        self._rounds = 0
        self._outcomes: dict[int, Receipt | ResultRejected] = {}
        self._pending = list(range(len(self._lines)))

    def request(self) -> Request | None:
        """Return the next request; None when every result has its outcome."""
        if not self._pending:
            return None
        self._rounds += 1
        body = b"\n".join(self._lines[i] for i in self._pending)
        headers = {"Content-Type": "application/x-ndjson"}
        return Request("POST", "/v1/results:batch" + _wait(self._wait), body, headers, self._wait or 0.0)

    def take(self, response: Response) -> float:
        """Take the answer's lines; returns the seconds to pause before the next request.

        Raises:
            SidecarError: they are no answer to what was asked.
            SidecarUnavailable: some results are to be sent again, and there is no time for it.
        """
        answers = [_object(text, "the sidecar answered a line with") for text in response.body.splitlines()]
        if len(answers) != len(self._pending):
            raise SidecarError(f"the sidecar answered {len(answers)} lines for {len(self._pending)}")
        asked, self._pending, cause = self._pending, [], ""
        for i, answer in zip(asked, answers, strict=True):
            status, problem = answer.get("status"), answer.get("problem") or {}
            if not isinstance(status, int):
                raise SidecarError(f"the sidecar answered a line without a status: {answer!r:.100}")
            if not isinstance(problem, dict):
                raise SidecarError(f"the sidecar answered a line with no problem document: {answer!r:.100}")
            if status < 300:
                self._outcomes[i] = receipt_of(answer)
            elif not passes(status):
                self._outcomes[i] = rejection(status, problem)
            else:
                self._pending.append(i)
                cause = f"{status} {problem.get('detail') or problem.get('title')}"
        pause = backoff(self._rounds) if self._pending else 0.0
        if self._pending and time.monotonic() + pause >= self._by:
            unsettled = f"{len(self._pending)} of {len(self._lines)} results: {cause}"
            raise SidecarUnavailable(self._settings.path, self._rounds, unsettled)
        return pause

    def outcomes(self) -> list[Receipt | ResultRejected]:
        """Return each result's outcome, in the order of the events."""
        return [self._outcomes[i] for i in range(len(self._lines))]


def _line(settings: Settings, event: Mapping[str, Any]) -> bytes:
    text = settings.encode({**event, "event_id": str(event.get("event_id") or uuid4())})
    return text.replace(b"\n", b" ")  # white space to JSON, but the end of a line to NDJSON
