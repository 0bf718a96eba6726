"""Both clients against the real sidecar."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from conftest import Sidecar, start
from drivers import Driver, about

from workflow_results import (
    Receipt,
    ResultConflict,
    ResultRejected,
    ResultTooLarge,
    SidecarClient,
    SidecarUnavailable,
)
from workflow_results._http import Request
from workflow_results._transport import Transport

ROOT = Path(__file__).parents[3]


def test_publish_and_get(driver: Driver) -> None:
    correlation = uuid4()
    receipt = driver.call(
        "publish", correlation_id=correlation, workflow_id="w", workflow_run_id="r", result={"n": 2**70}
    )
    assert not receipt.duplicate
    held = driver.call("get", receipt.event_id)
    assert held["correlation_id"] == str(correlation)
    assert [r["event_id"] for r in driver.call("list", correlation_id=correlation)] == [receipt.event_id]


def test_list_goes_on_after_a_seq(driver: Driver) -> None:
    event = about(result={})
    seqs = [driver.call("publish", **event).seq for _ in range(3)]
    page = driver.call("list", correlation_id=event["correlation_id"], after=seqs[0], limit=1)
    assert [held["seq"] for held in page] == [seqs[1]]


def test_every_argument_arrives(driver: Driver) -> None:
    event_id = uuid4()
    receipt = driver.call(
        "publish",
        **about(status="failure", error="declined", result={"a": 1}, event_id=event_id, wait_published=20, deadline=20),
        timestamp=datetime(2026, 1, 2, tzinfo=UTC),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert (receipt.event_id, receipt.state, receipt.topic) == (str(event_id), "published", "workflow-results")
    assert receipt.partition is not None
    assert receipt.offset is not None
    assert driver.call("get", event_id)["status"] == "failure"


def test_duplicate_and_conflict(driver: Driver) -> None:
    event = about(event_id=str(uuid4()), result={"a": 1})
    first = driver.call("publish", **event)
    again = driver.call("publish", **event)
    assert (again.duplicate, again.seq) == (True, first.seq)
    with pytest.raises(ResultConflict) as caught:
        driver.call("publish", **{**event, "result": {"a": 2}})
    assert caught.value.held["seq"] == first.seq


def test_invalid_names_every_field(driver: Driver) -> None:
    with pytest.raises(ResultRejected) as caught:
        driver.call("publish", correlation_id="nonsense", workflow_id="", workflow_run_id="r", status="error")
    assert caught.value.status == 422
    assert set(caught.value.fields) == {"correlation_id", "workflow_id", "error"}


def test_larger_than_the_sockets_buffer(driver: Driver) -> None:
    result = {"text": "x" * 900_000}
    receipt = driver.call("publish", **about(result=result, deadline=5))
    assert not receipt.duplicate
    assert driver.call("publish", **about(result={}, deadline=5)).seq > receipt.seq  # the connection is still in step


def test_too_large(driver: Driver) -> None:
    """The sidecar answers before it has read the body, and hangs up; that must not look like a broken connection."""
    for size in (1_100_000, 2_000_000, 20_000_000):
        with pytest.raises(ResultTooLarge):
            driver.call("publish", **about(result={"pad": "x" * size}))


def test_unknown_result(driver: Driver) -> None:
    with pytest.raises(ResultRejected) as caught:
        driver.call("get", uuid4())
    assert caught.value.status == 404


def test_an_id_is_no_path(driver: Driver) -> None:
    with pytest.raises(ResultRejected) as caught:
        driver.call("get", "../status?x=y")
    assert caught.value.status == 404


def test_publish_many(driver: Driver) -> None:
    good, bad = about(status="success", result={}), about(status="success")
    first, second, third = driver.call("publish_many", [good, bad, good], wait_published=20)
    assert isinstance(first, Receipt)
    assert first.state == "published"
    assert isinstance(second, ResultRejected)
    assert set(second.fields) == {"result"}
    assert isinstance(third, Receipt)
    assert driver.call("publish_many", []) == []


def test_a_batch_of_indented_json(kind: type[Driver], sidecar: Sidecar) -> None:
    driver = kind(sidecar.socket, dumps=lambda value: json.dumps(value, indent=2))
    outcomes = driver.call("publish_many", [about(status="success", result={"text": "a\nb"})] * 2)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    driver.close()


def test_whatever_dumps_raises_is_an_error_of_the_value(kind: type[Driver], sidecar: Sidecar) -> None:
    def breaks(value: Any) -> str:
        raise KeyError("boom")

    driver = kind(sidecar.socket, dumps=breaks)
    with pytest.raises(ValueError, match="cannot write the result as JSON: KeyError: 'boom'"):
        driver.call("publish", **about(), result={})
    with pytest.raises(ValueError, match="KeyError"):
        driver.call("publish_many", [about(result={})])
    driver.close()


def test_many_at_once(driver: Driver) -> None:
    receipts = [r for _ in range(4) for r in driver.publish_at_once([about(result={}) for _ in range(100)])]
    assert len({receipt.event_id for receipt in receipts}) == 400


def test_status(driver: Driver, sidecar: Sidecar) -> None:
    assert driver.call("status")["socket"] == sidecar.socket


def test_a_restart_goes_unnoticed(kind: type[Driver]) -> None:
    with tempfile.TemporaryDirectory(prefix="wr") as directory:
        running = start(Path(directory))
        driver = kind(running.socket)
        driver.publish_at_once([about(result={}) for _ in range(8)])
        running.stop()
        running = start(Path(directory))
        assert driver.call("publish", **about(result={})).seq == 9
        driver.close()
        running.stop()


def test_killed_again_and_again(kind: type[Driver]) -> None:
    """Whatever the moment at which the sidecar dies: each result is held once, and none is lost."""
    with tempfile.TemporaryDirectory(prefix="wr") as directory:
        running = start(Path(directory))
        driver = kind(running.socket)
        ids: list[str] = []
        over = threading.Event()

        def publish() -> None:
            while not over.is_set():
                ids.extend(receipt.event_id for receipt in driver.publish_at_once([about(result={})] * 4))

        with ThreadPoolExecutor(1) as threads:
            publishing = threads.submit(publish)
            for _ in range(3):
                before = len(ids)
                while len(ids) < before + 20 and not publishing.done():
                    over.wait(0.01)
                running.process.kill()
                running.process.wait(30)
                running = start(Path(directory))
            over.set()
            publishing.result(30)
        assert len(ids) >= 60
        held = [entry["event_id"] for entry in pages(driver)]
        assert sorted(held) == sorted(ids)
        driver.close()
        running.stop()


def pages(driver: Driver) -> list[dict[str, object]]:
    """Return all that is held."""
    entries: list[dict[str, object]] = []
    while page := driver.call("list", after=entries[-1]["seq"] if entries else 0, limit=1000):
        entries.extend(page)
    return entries


def test_fork_makes_its_own_connections(driver: Driver) -> None:
    driver.call("status")  # an idle connection that the child must not use
    pool = driver.client._transport.pool
    assert len(pool._idle) == 1
    parents = pool._idle[0].fileno()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if pool.take() is None and pool._pid == os.getpid() else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pool._idle[0].fileno() == parents
    driver.call("publish", **about(result={}))
    assert pool._idle[0].fileno() == parents  # the child has not ended the parent's connection


def test_forked_workers_publish(client: SidecarClient) -> None:
    client.status()
    pids = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            try:
                os._exit(0 if all(client.publish(**about(result={})).seq > 0 for _ in range(20)) else 1)
            except BaseException:
                os._exit(2)
        pids.append(pid)
    for _ in range(20):
        client.publish(**about(result={}))
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]


def test_vectors_are_taken_and_refused(sidecar: Sidecar) -> None:
    """The vectors that the Go side decodes go through the socket, byte for byte."""
    transport = Transport(sidecar.socket)
    seen: Counter[str] = Counter()
    for kind in ("valid", "invalid"):
        for vector in json.loads((ROOT / "api" / "vectors" / f"{kind}.json").read_text()):
            body = base64.b64decode(vector["input_base64"]) if "input_base64" in vector else vector["input"].encode()
            answer = transport.request(
                Request("POST", "/v1/results", body, {"Content-Type": "application/json"}), timeout=10
            )
            # Many vectors share an event ID: a conflict has been decoded and compared.
            want = {"valid": (201, 200, 409), "syntax": (400,), "invalid": (422,)}[vector.get("kind", "valid")]
            assert answer.status in want, f"{vector['name']}: {answer.status} {answer.body!r}"
            seen[vector.get("kind", "valid")] += 1
    transport.pool.close()
    assert min(seen[kind] for kind in ("valid", "syntax", "invalid")) > 10


def test_missing_socket_that_appears(kind: type[Driver], sidecar: Sidecar, tmp_path: Path) -> None:
    path = tmp_path / "later"
    driver = kind(str(path))
    tried = threading.Event()
    pool = driver.client._transport.pool
    take = pool.take

    def watched() -> object:
        tried.set()
        return take()

    pool.take = watched  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(driver.call, "publish", **about(result={}))
        assert tried.wait(10)
        path.symlink_to(sidecar.socket)
        assert answer.result(20).seq > 0
    driver.close()


def test_deadline_tells_what_to_do(kind: type[Driver], tmp_path: Path) -> None:
    driver = kind(str(tmp_path / "nowhere"), deadline=0.5)
    with pytest.raises(SidecarUnavailable, match=r"nowhere.*FileNotFoundError.*event_id") as caught:
        driver.call("publish", **about(result={}))
    assert caught.value.attempts > 1
    UUID(caught.value.event_id)
    driver.close()


def test_long_path_is_refused_early(kind: type[Driver]) -> None:
    with pytest.raises(ValueError, match="107"):
        kind("/" + "x" * 107)


def test_the_environment_names_the_socket(sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_SOCKET", sidecar.socket)
    with SidecarClient() as client:
        assert client.status()["socket"] == sidecar.socket


def test_no_header_is_smuggled_in(driver: Driver) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        driver.call("publish", **about(result={}), traceparent="00-1\r\nX-Evil: 1")


def test_demo_hands_over_three_results(sidecar: Sidecar, client: SidecarClient) -> None:
    script = ROOT / "examples" / "python" / "demo" / "run_demo.py"
    run = subprocess.run([sys.executable, str(script), "--socket", sidecar.socket], check=True, capture_output=True)
    ids = json.loads(run.stdout)
    for status, correlation in ids.items():
        (held,) = client.list(correlation_id=correlation)
        assert held["status"] == status
