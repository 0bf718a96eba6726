from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from conftest import Sidecar

from workflow_results import Receipt, ResultRejected, SidecarClient, SidecarUnavailable
from workflow_results.result_producer import ResultProducer


def test_start_publish_stop(sidecar: Sidecar, client: SidecarClient) -> None:
    correlation = str(uuid4())

    async def run() -> list[Receipt]:
        producer = ResultProducer(sidecar.socket, deadline=20)
        await producer.start()
        try:
            return [
                await producer.publish_result(correlation, "invoice", "run-1", {"total": 1}),
                await producer.publish_result(correlation, "invoice", "run-1", {}, "failure", "declined"),
                await producer.publish_result(correlation, "invoice", "run-1", None, status="error", error="broke"),
            ]
        finally:
            await producer.stop()

    receipts = asyncio.run(run())
    held = client.list(correlation_id=correlation)
    assert [entry["status"] for entry in held] == ["success", "failure", "error"]
    assert [entry["seq"] for entry in held] == [receipt.seq for receipt in receipts]


def test_published_twice_with_its_event_id(sidecar: Sidecar) -> None:
    about = (str(uuid4()), "invoice", "run-1", {"total": 1})
    event_id = uuid4()

    async def run() -> tuple[Receipt, Receipt]:
        async with ResultProducer(sidecar.socket) as producer:
            first = await producer.publish_result(*about, event_id=event_id)
            return first, await producer.publish_result(*about, event_id=event_id)

    first, second = asyncio.run(run())
    assert (second.duplicate, second.seq) == (True, first.seq)


def test_not_started_and_stopped(sidecar: Sidecar) -> None:
    async def run() -> None:
        producer = ResultProducer(sidecar.socket)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="start"):
                await producer.publish_result(str(uuid4()), "w", "r", {})
            await producer.start()
            await producer.stop()
        await producer.start()  # and it can be started again
        assert (await producer.publish_result(str(uuid4()), "w", "r", {})).seq > 0
        await producer.stop()

    asyncio.run(run())


def test_errors_reach_the_caller(sidecar: Sidecar, tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(SidecarUnavailable):
            await ResultProducer(str(tmp_path / "nowhere"), deadline=0.2).start()
        async with ResultProducer(sidecar.socket) as producer:
            with pytest.raises(ResultRejected):
                await producer.publish_result(str(uuid4()), "w", "r", None)
            with pytest.raises(TypeError, match="cannot write"):
                await producer.publish_result(str(uuid4()), "w", "r", {"x": object()})

    asyncio.run(run())
