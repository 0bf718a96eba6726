"""Handing over the one result of a workflow's run, so that whoever waits for it hears exactly one.

Its event_id is derived from what it answers, not made: a run that is repeated or
resumed, in this process or another, publishes under the same one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from workflow_results._protocol import Status, receipt_of
from workflow_results.aio import AsyncSidecarClient
from workflow_results.client import SidecarClient
from workflow_results.errors import ResultConflict, ResultRejected
from workflow_results.receipt import Receipt

# uuid5(NAMESPACE_URL, "urn:workflow-results"). Never changed: every event_id that was ever derived depends on it.
NAMESPACE = UUID("cf321036-a3b8-5caf-8eb9-35b340eb5a59")
EVENT_TYPE = "workflow.result"
NOT_HANDED_OVER = (ResultRejected, TypeError, ValueError)  # refused by the sidecar, or not even JSON

_MAX_ID_BYTES = 256
_MAX_TEXT = 8192  # characters of an error's text: a message can be as large as the state that it quotes
_log = logging.getLogger("workflow_results")


def result_event_id(correlation_id: str | UUID, workflow_id: str, generation: int = 0) -> str:
    """Derive the event_id of the answer that one workflow gives to one trigger.

    Args:
        correlation_id: the event ID of the trigger.
        workflow_id: which workflow answers it.
        generation: which of its answers; another number makes another result.

    Raises:
        ValueError: the correlation ID is no UUID.
    """
    return str(uuid5(NAMESPACE, f"{_uuid(correlation_id)}/{workflow_id}/{EVENT_TYPE}/{generation}"))


@dataclass(frozen=True, slots=True)
class Identity:
    """What a result answers, checked before the workflow runs: afterwards it would be too late to answer at all."""

    correlation_id: str
    workflow_id: str
    workflow_run_id: str
    generation: int

    @classmethod
    def of(cls, correlation_id: str | UUID, workflow_id: str, workflow_run_id: str, generation: int) -> Identity:
        """Check and keep them.

        Raises:
            TypeError, ValueError: the sidecar would refuse any result that has them.
        """
        for name, text in (("workflow_id", workflow_id), ("workflow_run_id", workflow_run_id)):
            if not isinstance(text, str):
                raise TypeError(f"{name} must be a str, not a {type(text).__qualname__}")
            if not 1 <= len(text.encode()) <= _MAX_ID_BYTES:
                raise ValueError(f"{name} must have 1 to {_MAX_ID_BYTES} bytes, not {len(text.encode())}")
        return cls(_uuid(correlation_id), workflow_id, workflow_run_id, generation)

    @property
    def event_id(self) -> str:
        """The derived event_id."""
        return result_event_id(self.correlation_id, self.workflow_id, self.generation)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to whoever waits."""

    status: Status
    result: Any = None
    error: str | None = None


def error_answer(error: BaseException, prefix: str = "") -> Answer:
    """Say what broke: ``Type: message``, of a bounded size, in characters that JSON can carry."""
    name = type(error).__name__
    try:
        said = str(error)
    except Exception as e:  # whoever waits is answered all the same
        said = f"its message could not be made ({type(e).__name__})"
    text = prefix + (f"{name}: {said}" if said else name)
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}… ({len(text)} characters in all)"
    return Answer("error", error=text.encode("utf-8", "backslashreplace").decode())


def hand_over(client: SidecarClient, identity: Identity, answer: Answer) -> Receipt:
    """Publish the answer; the first one of an identity stands.

    If it can never be published, a small ``error`` result with the reason goes
    out in its place: nobody shall wait for nothing.

    Returns:
        The receipt; ``duplicate`` where the same or another answer is held already.

    Raises:
        ResultRejected, TypeError, ValueError: why the answer could not be published.
        SidecarUnavailable: it may or may not be held; handing it over again is safe.
    """
    try:
        return client.publish(**_fields(identity, answer))
    except ResultConflict as conflict:
        return _first_stands(identity, answer, conflict)
    except NOT_HANDED_OVER as problem:
        instead = error_answer(problem, "the result could not be handed over: ")
        try:
            client.publish(**_fields(identity, instead))
        except ResultConflict as conflict:
            _first_stands(identity, instead, conflict)
        except ResultRejected as second:
            problem.add_note(f"an error result in its place was refused too: {second}")
        raise


async def ahand_over(client: AsyncSidecarClient, identity: Identity, answer: Answer) -> Receipt:
    """Publish the answer as ``hand_over`` does, without blocking the loop."""
    try:
        return await client.publish(**_fields(identity, answer))
    except ResultConflict as conflict:
        return _first_stands(identity, answer, conflict)
    except NOT_HANDED_OVER as problem:
        instead = error_answer(problem, "the result could not be handed over: ")
        try:
            await client.publish(**_fields(identity, instead))
        except ResultConflict as conflict:
            _first_stands(identity, instead, conflict)
        except ResultRejected as second:
            problem.add_note(f"an error result in its place was refused too: {second}")
        raise


def _fields(identity: Identity, answer: Answer) -> dict[str, Any]:
    return {
        "correlation_id": identity.correlation_id,
        "workflow_id": identity.workflow_id,
        "workflow_run_id": identity.workflow_run_id,
        "event_id": identity.event_id,
        "status": answer.status,
        "result": answer.result,
        "error": answer.error,
    }


def _first_stands(identity: Identity, answer: Answer, conflict: ResultConflict) -> Receipt:
    """Whoever waited has been answered: tell by what. Never log the payload, it is not ours to show."""
    held = conflict.held
    _log.warning(
        "correlation ID %s, workflow %s: already answered with %s by run %s (event_id %s); %s of run %s is not "
        "published. If it is to be, run with another generation than %d",
        identity.correlation_id, identity.workflow_id, held.get("status"), held.get("workflow_run_id"),
        identity.event_id, answer.status, identity.workflow_run_id, identity.generation,
    )  # fmt: skip
    return receipt_of({**held, "duplicate": True})


def _uuid(text: str | UUID) -> str:
    """Return the one form that the sidecar takes."""
    try:
        found = text if isinstance(text, UUID) else UUID(text)
    except (ValueError, AttributeError, TypeError) as e:
        raise ValueError(f"the correlation ID must be a UUID, not {text!r}") from e
    if found.int == 0:
        raise ValueError("the correlation ID is the nil UUID: a default that somebody forgot to fill")
    return str(found)
