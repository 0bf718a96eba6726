"""What can go wrong between a workflow and its sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SidecarError(Exception):
    """Base of all errors of this package.

    It is raised itself when an answer is none of a sidecar. As with
    ``SidecarUnavailable``, the result may or may not be held.
    """


class SidecarUnavailable(SidecarError):
    """The sidecar gave no answer that settles the matter before the deadline.

    The result may or may not be held. Publishing it again with the same
    ``event_id`` is safe: the sidecar stores it once.
    """

    def __init__(self, socket_path: str, attempts: int, cause: str, event_id: str | None = None) -> None:
        """Keep what an operator needs: path, number of attempts, the last cause."""
        self.socket_path = socket_path
        self.attempts = attempts
        self.cause = cause
        self.event_id = event_id
        again = f" Publish again with event_id={event_id!r}." if event_id else ""
        super().__init__(
            f"the sidecar at {socket_path} did not settle the request in {attempts} attempts; last cause: {cause}. "
            f"Is it running, and is the socket's directory shared with this process?{again}"
        )


class ResultRejected(SidecarError):
    """The sidecar refuses the request, and would refuse it again (HTTP 4xx other than 408 and 429)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """Take the HTTP status and the problem document (RFC 9457)."""
        self.status = status
        self.problem = dict(problem)
        super().__init__(f"{status} {problem.get('title', '')}: {problem.get('detail', '')}")

    @property
    def fields(self) -> dict[str, str]:
        """What is wrong with each field (HTTP 422), by its name."""
        return {e["field"]: e["message"] for e in self.problem.get("errors", [])}


class ResultConflict(ResultRejected):
    """The ``event_id`` is already held with other content (HTTP 409)."""

    @property
    def held(self) -> dict[str, Any]:
        """What is held under the event ID."""
        return dict(self.problem.get("held", {}))


class ResultTooLarge(ResultRejected):
    """The result is larger than the topic takes (HTTP 413)."""


def rejection(status: int, problem: Mapping[str, Any]) -> ResultRejected:
    """Make the error that fits a 4xx answer."""
    kind = {409: ResultConflict, 413: ResultTooLarge}.get(status, ResultRejected)
    return kind(status, problem)
