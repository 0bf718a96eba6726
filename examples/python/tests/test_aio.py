"""What only the client for asyncio has to do: be cancelled, and serve several loops."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from binary import sidecar_binary
from broken_server import CREATED, BrokenServer, http
from conftest import Sidecar
from drivers import about
from kafka import eventually

from workflow_results import Sidecar as EmbeddedSidecar
from workflow_results import SidecarUnavailable
from workflow_results.aio import AsyncSidecarClient

# A connection that is dropped without being closed is found by these.
pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]


def test_a_cancelled_call_leaves_no_half_answer(tmp_path: Path) -> None:
    """The first answer comes half; its connection must not serve the second call."""
    arrived = threading.Event()

    def half(number: int) -> bytes | None:
        server.send(number, b"HTTP/1.1 201 X\r\nContent-Length: 9999\r\n\r\n{")
        arrived.set()
        return server.silent(number)

    server = BrokenServer(tmp_path / "b", http(201, CREATED), half, http(201, CREATED))

    async def run() -> None:
        async with AsyncSidecarClient(tmp_path / "b") as client:
            await client.publish(**about(result={}))  # the call that is cancelled takes this one's connection
            cancelled = asyncio.create_task(client.publish(**about(result={})))
            await asyncio.to_thread(arrived.wait, 10)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert client._transport.pool.take() is None
            assert (await client.publish(**about(result={}))).seq == 1
            assert server.connections == 2

    asyncio.run(run())
    server.close()


def test_calls_cancelled_at_any_moment_harm_no_other(sidecar: Sidecar) -> None:
    async def run() -> None:
        async with AsyncSidecarClient(sidecar.socket) as client:
            for i in range(100):
                event = about(result={"i": i})
                doomed = asyncio.create_task(client.publish(**about(result={"i": -1})))
                for _ in range(i % 8):
                    await asyncio.sleep(0)
                doomed.cancel()
                receipt = await client.publish(**event)
                held = await client.get(receipt.event_id)
                assert held["correlation_id"] == event["correlation_id"]
                await asyncio.gather(doomed, return_exceptions=True)

    asyncio.run(run())


def test_a_timeout_of_the_caller_is_the_callers(tmp_path: Path) -> None:
    server = BrokenServer(tmp_path / "b", lambda n: server.silent(n))

    async def run() -> None:
        async with AsyncSidecarClient(tmp_path / "b") as client, asyncio.timeout(0.2):
            await client.publish(**about(result={}))

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert len(server.bodies) == 1
    server.close()


def test_several_loops_one_after_another(sidecar: Sidecar) -> None:
    client = AsyncSidecarClient(sidecar.socket)
    for _ in range(3):
        assert asyncio.run(client.publish(**about(result={}))).seq > 0
    asyncio.run(client.close())


def test_several_loops_at_once(sidecar: Sidecar) -> None:
    client = AsyncSidecarClient(sidecar.socket)

    async def publish() -> list[str]:
        receipts = await asyncio.gather(*(client.publish(**about(result={})) for _ in range(50)))
        return [receipt.event_id for receipt in receipts]

    with ThreadPoolExecutor(4) as threads:
        ids = [i for made in threads.map(lambda _: asyncio.run(publish()), range(4)) for i in made]
    assert len(set(ids)) == 200
    asyncio.run(client.close())


def test_many_tasks_take_turns(sidecar: Sidecar) -> None:
    """Thousands of tasks at once must not open thousands of connections."""

    async def run() -> int:
        async with AsyncSidecarClient(sidecar.socket) as client:
            most, watching = 0, True

            async def watch() -> None:
                nonlocal most
                while watching:
                    most = max(most, len(os.listdir("/proc/self/fd")))
                    await asyncio.sleep(0)

            before = len(os.listdir("/proc/self/fd"))
            watcher = asyncio.create_task(watch())
            await asyncio.gather(*(client.publish(**about(result={})) for _ in range(1000)))
            watching = False
            await watcher
            return most - before

    assert 8 < asyncio.run(run()) < 70


def test_loops_that_have_ended_are_let_go(sidecar: Sidecar) -> None:
    client = AsyncSidecarClient(sidecar.socket)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def crowd() -> None:  # more than may go at once: some wait for their turn
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await asyncio.gather(*(client.status() for _ in range(100)))

    for _ in range(3):
        asyncio.run(crowd())
    gc.collect()
    assert [loop() for loop in loops[:-1]] == [None, None]
    asyncio.run(client.close())


def test_the_loop_is_not_blocked(tmp_path: Path) -> None:
    server = BrokenServer(tmp_path / "b", lambda n: server.silent(n))

    async def run() -> int:
        ticks = 0
        async with AsyncSidecarClient(tmp_path / "b", deadline=1) as client:
            waiting = asyncio.create_task(client.publish(**about(result={})))
            while not waiting.done():
                ticks += 1
                await asyncio.sleep(0.01)
            with pytest.raises(SidecarUnavailable):
                await waiting
        return ticks

    assert asyncio.run(run()) > 10
    server.close()


def test_a_fork_between_two_loops(sidecar: Sidecar) -> None:
    client = AsyncSidecarClient(sidecar.socket)
    asyncio.run(client.publish(**about(result={})))
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if asyncio.run(client.publish(**about(result={}))).seq > 0 else 1)
        except BaseException:
            os._exit(2)
    for _ in range(20):
        asyncio.run(client.publish(**about(result={})))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    asyncio.run(client.close())


def test_many_that_wait_for_publication_hold_nobody_up(tmp_path: Path) -> None:
    """With Kafka away, each hears "pending" when its wait is over, however many there are."""

    async def run(path: str) -> set[str]:
        async with AsyncSidecarClient(path, deadline=20) as client:
            waits = [client.publish(**about(result={}), wait_published=2) for _ in range(400)]
            quick = [client.publish(**about(result={})) for _ in range(200)]
            return {receipt.state for receipt in await asyncio.gather(*waits, *quick)}

    with EmbeddedSidecar(
        "127.0.0.1:1", tmp_path / "data", binary=sidecar_binary(), args=["--shutdown-timeout", "1s"]
    ) as own:
        assert asyncio.run(run(own.socket_path)) == {"pending"}


def test_no_free_connection_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflow_results.aio._MAX_AT_ONCE", 1)
    server = BrokenServer(tmp_path / "b", lambda n: server.silent(n))

    async def run() -> None:
        async with AsyncSidecarClient(tmp_path / "b", deadline=2) as client:
            first = asyncio.create_task(client.publish(**about(result={}), deadline=30))
            await asyncio.to_thread(eventually, lambda: server.bodies)
            with pytest.raises(
                SidecarUnavailable, match="all 1 connections of this client are in use; nothing was sent"
            ):
                await client.publish(**about(result={}))
            first.cancel()

    asyncio.run(run())
    assert len(server.bodies) == 1
    server.close()
