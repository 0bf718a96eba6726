"""Reads one result whose place in Kafka is known."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from workflow_results.airflow.errors import WorkflowResultUnreadable
from workflow_results.connection import Connection
from workflow_results.reader import Reader
from workflow_results.result import WorkflowResult

# JSON: {"topic": …, "partition": …, "offset": …, "correlation_id": …}.
Reference = dict[str, Any]

_READ_WAIT = 0.2  # seconds


def refer_to(result: WorkflowResult) -> Reference:
    """Say where a result stands."""
    return {
        "topic": result.topic,
        "partition": result.partition,
        "offset": result.offset,
        "correlation_id": result.correlation_id,
    }


def fetch(config: Mapping[str, Any], reference: Mapping[str, Any], timeout: float) -> WorkflowResult:
    """Read the result that a reference names.

    Args:
        config: configuration of confluent-kafka.
        timeout: seconds in which brokers that are away are asked again.

    Raises:
        WorkflowResultUnreadable: it is no longer there, was not read in time, or cannot be with this configuration.
        ValueError: it is not a reference.
    """
    topic, partition, offset, key = _parts(reference)
    where = f"topic {topic}, partition {partition}, offset {offset}"
    troubles: list[str] = []
    try:
        reader = Reader(
            Connection(config), topic, lambda e: _note(e, troubles), lambda t: troubles.extend([t] if t else [])
        )
    except KafkaException as e:
        raise WorkflowResultUnreadable(f"{where} was not read: {e.args[0]}. Correct the connection.") from e
    try:
        value = _value(reader, partition, offset, time.monotonic() + timeout, troubles)
    finally:
        reader.close()
    if value is None:
        raise WorkflowResultUnreadable(f"{where} was not read in {timeout:g} s: {_last(troubles)}. Try again.")
    try:
        found = WorkflowResult.from_record(value, topic, partition, offset)
    except ValueError as e:
        raise _gone(where, f"it holds no result: {e}") from e
    if found.correlation_id != key:
        raise _gone(where, f"it holds the result of {found.correlation_id}, not of {key}")
    return found


def _value(reader: Reader, partition: int, offset: int, deadline: float, troubles: list[str]) -> bytes | None:
    """Return the record's value; empty if another record, or the topic's end, stands in its place."""
    assigned = False
    while time.monotonic() < deadline:
        try:
            if not assigned:
                reader.assign({partition: offset})
                assigned = True
            records = reader.read(_READ_WAIT)
        except KafkaException as e:
            troubles.append(str(e.args[0]))
            if isinstance(e.args[0], KafkaError) and e.args[0].fatal():
                return None
            continue
        if records:
            return (records[0].value() or b"") if records[0].offset() == offset else b""
        if assigned and reader.next[partition] > offset:
            return b""
    return None


def _parts(reference: Mapping[str, Any]) -> tuple[str, int, int, str]:
    try:
        return (
            str(reference["topic"]),
            int(reference["partition"]),
            int(reference["offset"]),
            str(reference["correlation_id"]),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(
            "not a reference to a result: it must have topic, partition, offset and correlation_id, "
            "as the XCom of a large result has"
        ) from e


def _note(error: KafkaError, troubles: list[str]) -> None:
    troubles.append(str(error))


def _last(troubles: list[str]) -> str:
    return troubles[-1] if troubles else "the brokers sent nothing"


def _gone(where: str, why: str) -> WorkflowResultUnreadable:
    return WorkflowResultUnreadable(
        f"the result at {where} is gone: {why}. The topic's retention has removed it, or the topic was made anew; "
        "clear the task to run the workflow again."
    )
