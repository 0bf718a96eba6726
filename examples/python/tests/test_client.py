from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from conftest import Sidecar

from workflow_results import (
    Receipt,
    ResultConflict,
    ResultRejected,
    ResultTooLarge,
    SidecarClient,
    SidecarUnavailable,
)
from workflow_results._transport import Transport, UnixConnection
from workflow_results.encoding import dumps

ROOT = Path(__file__).parents[3]


def about(**more: object) -> dict[str, object]:
    return {"correlation_id": str(uuid4()), "workflow_id": "w", "workflow_run_id": "r", **more}


def test_publish_and_get(client: SidecarClient) -> None:
    correlation = uuid4()
    receipt = client.publish(correlation_id=correlation, workflow_id="w", workflow_run_id="r", result={"n": 2**70})
    assert not receipt.duplicate
    held = client.get(receipt.event_id)
    assert held["correlation_id"] == str(correlation)
    assert [r["event_id"] for r in client.list(correlation_id=correlation)] == [receipt.event_id]


def test_wait_published_tells_where(client: SidecarClient) -> None:
    receipt = client.publish(**about(result={}), wait_published=20)
    assert receipt.state == "published"
    assert receipt.topic == "workflow-results"
    assert receipt.partition is not None
    assert receipt.offset is not None


def test_duplicate_and_conflict(client: SidecarClient) -> None:
    event = about(event_id=str(uuid4()), result={"a": 1})
    first = client.publish(**event)
    again = client.publish(**event)
    assert (again.duplicate, again.seq) == (True, first.seq)
    with pytest.raises(ResultConflict) as caught:
        client.publish(**{**event, "result": {"a": 2}})
    assert caught.value.held["seq"] == first.seq


def test_invalid_names_every_field(client: SidecarClient) -> None:
    with pytest.raises(ResultRejected) as caught:
        client.publish(correlation_id="nonsense", workflow_id="", workflow_run_id="r", status="error")
    assert caught.value.status == 422
    assert set(caught.value.fields) == {"correlation_id", "workflow_id", "error"}


def test_too_large(client: SidecarClient) -> None:
    with pytest.raises(ResultTooLarge):
        client.publish(**about(result={"pad": "x" * 2_000_000}))


def test_unknown_result(client: SidecarClient) -> None:
    with pytest.raises(ResultRejected) as caught:
        client.get(uuid4())
    assert caught.value.status == 404


def test_publish_many(client: SidecarClient) -> None:
    good, bad = about(status="success", result={}), about(status="success")
    first, second, third = client.publish_many([good, bad, good], wait_published=20)
    assert isinstance(first, Receipt)
    assert first.state == "published"
    assert isinstance(second, ResultRejected)
    assert set(second.fields) == {"result"}
    assert isinstance(third, Receipt)
    assert client.publish_many([]) == []


def test_threads_share_a_client(client: SidecarClient) -> None:
    def publish(_: int) -> str:
        return client.publish(**about(result={})).event_id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(publish, range(800)))
    assert len(set(ids)) == 800


def test_fork_makes_its_own_connections(client: SidecarClient) -> None:
    client.status()  # an idle connection that the child must not use
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if client.publish(**about(result={})).seq > 0 and client._transport._pid == os.getpid() else 1)
        except BaseException:
            os._exit(2)
    for _ in range(20):
        client.publish(**about(result={}))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_vectors_are_taken_and_refused(sidecar: Sidecar) -> None:
    """The vectors that the Go side decodes go through the socket, byte for byte."""
    transport = Transport(sidecar.socket)
    seen: Counter[str] = Counter()
    for kind in ("valid", "invalid"):
        for vector in json.loads((ROOT / "api" / "vectors" / f"{kind}.json").read_text()):
            body = base64.b64decode(vector["input_base64"]) if "input_base64" in vector else vector["input"].encode()
            answer = transport.request("POST", "/v1/results", body, {"Content-Type": "application/json"}, 10)
            # Many vectors share an event ID: a conflict has been decoded and compared.
            want = {"valid": (201, 200, 409), "syntax": (400,), "invalid": (422,)}[vector.get("kind", "valid")]
            assert answer.status in want, f"{vector['name']}: {answer.status} {answer.body!r}"
            seen[vector.get("kind", "valid")] += 1
    transport.close()
    assert min(seen[kind] for kind in ("valid", "syntax", "invalid")) > 10


def test_missing_socket_that_appears(sidecar: Sidecar, tmp_path: Path) -> None:
    path = tmp_path / "later"
    tried = threading.Event()

    class Watched(Transport):
        def _take(self, timeout: float) -> UnixConnection:
            tried.set()
            return super()._take(timeout)

    client = SidecarClient(str(path))
    client._transport = Watched(str(path))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.publish, **about(result={}))
        assert tried.wait(10)
        path.symlink_to(sidecar.socket)
        assert answer.result(20).seq > 0
    client.close()


def test_deadline_tells_what_to_do(tmp_path: Path) -> None:
    client = SidecarClient(str(tmp_path / "nowhere"), deadline=0.3)
    with pytest.raises(SidecarUnavailable, match=r"nowhere.*FileNotFoundError.*event_id") as caught:
        client.publish(**about(result={}))
    assert caught.value.attempts > 1


def test_long_path_is_refused_early() -> None:
    with pytest.raises(ValueError, match="107"):
        SidecarClient("/" + "x" * 107)


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int


class Model:
    def model_dump(self, mode: str) -> dict[str, str]:
        return {"mode": mode}


def test_encoding() -> None:
    some_id, when = uuid4(), datetime(2026, 1, 2, tzinfo=UTC)
    value = {
        "a": some_id,
        "b": when,
        "c": Decimal("0.10"),
        "d": Colour.RED,
        "e": {1},
        "f": b"\x00",
        "g": Point(1),
        "h": Model(),
    }
    assert json.loads(dumps(value)) == {
        "a": str(some_id), "b": "2026-01-02T00:00:00+00:00", "c": "0.10", "d": "red",
        "e": [1], "f": "AA==", "g": {"x": 1}, "h": {"mode": "json"},
    }  # fmt: skip
    with pytest.raises(ValueError, match="Out of range"):
        dumps({"x": float("nan")})
    with pytest.raises(TypeError, match="object"):
        dumps({"x": object()})


# A server that misbehaves by script: what the real one cannot be made to do.

CREATED = b'{"event_id":"e","seq":1,"state":"pending","duplicate":false}'


def http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


class BrokenServer:
    """Answers each request by the next step of a script: bytes, or None to hang up."""

    def __init__(self, path: Path, steps: list[bytes | None]) -> None:
        import socket

        self.bodies: list[bytes] = []
        self._steps = steps
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        steps = iter(self._steps)
        step = next(steps, b"")
        while step != b"":
            conn, _ = self._listener.accept()
            with conn, conn.makefile("rb") as stream:
                while step != b"" and (body := self._request(stream)) is not None:
                    self.bodies.append(body)
                    answer, step = step, next(steps, b"")
                    if answer is None:
                        break
                    conn.sendall(answer)
                    if b"hang up" in answer:
                        break

    @staticmethod
    def _request(stream: object) -> bytes | None:
        length = 0
        while True:
            line = stream.readline()  # type: ignore[attr-defined]
            if not line:
                return None
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            if line == b"\r\n":
                return bytes(stream.read(length))  # type: ignore[attr-defined]

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Callable[..., tuple[SidecarClient, BrokenServer]]]:
    made: list[BrokenServer] = []
    clients: list[SidecarClient] = []

    def make(*steps: bytes | None) -> tuple[SidecarClient, BrokenServer]:
        path = tmp_path / "b"
        server = BrokenServer(path, list(steps))
        made.append(server)
        clients.append(SidecarClient(str(path), deadline=10))
        return clients[-1], server

    yield make
    for client in clients:
        client.close()
    for server in made:
        server.close()


@pytest.mark.parametrize(
    "trouble",
    [
        [None],
        [b"HTTP/1.1 201 X\r\nContent-Length: 100\r\n\r\nhang up half way"],
        [http(503, b'{"detail":"busy"}', "Retry-After: 0")],
        [http(500, b"no json"), None],
        [http(429, b"{}", "Retry-After: 0")],
        [http(507, b'{"detail":"full"}', "Retry-After: 0")],
    ],
    ids=["reset", "half an answer", "503", "500 then reset", "429", "507"],
)
def test_sent_again_with_the_same_event_id(
    broken: Callable[..., tuple[SidecarClient, BrokenServer]], trouble: list[bytes | None]
) -> None:
    client, server = broken(*trouble, http(201, CREATED))
    assert client.publish(**about(result={})).seq == 1
    ids = {json.loads(body)["event_id"] for body in server.bodies}
    assert len(server.bodies) == len(trouble) + 1
    assert len(ids) == 1
    UUID(ids.pop())


def test_stale_keep_alive(broken: Callable[..., tuple[SidecarClient, BrokenServer]]) -> None:
    client, server = broken(http(201, CREATED), None, http(201, CREATED))
    client.publish(**about(result={}))
    client.publish(**about(result={}))  # its kept connection is hung up on
    assert server.bodies[1] == server.bodies[2]


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 415, 422])
def test_other_4xx_are_not_repeated(broken: Callable[..., tuple[SidecarClient, BrokenServer]], status: int) -> None:
    client, server = broken(http(status, b'{"title":"no"}'))
    with pytest.raises(ResultRejected) as caught:
        client.publish(**about(result={}))
    assert caught.value.status == status
    assert len(server.bodies) == 1


def test_batch_lines_that_were_full_are_sent_again(
    broken: Callable[..., tuple[SidecarClient, BrokenServer]],
) -> None:
    full = b'{"line":2,"status":507,"problem":{"detail":"full"}}\n'
    ok = b'{"line":1,"status":201,' + CREATED[1:] + b"\n"
    client, server = broken(http(200, ok + full), http(200, ok))
    outcomes = client.publish_many([about(status="success", result={}), about(status="success", result={})])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert server.bodies[1] == server.bodies[0].split(b"\n")[1]


def test_demo_hands_over_three_results(sidecar: Sidecar, client: SidecarClient) -> None:
    script = ROOT / "examples" / "python" / "demo" / "run_demo.py"
    run = subprocess.run([sys.executable, str(script), "--socket", sidecar.socket], check=True, capture_output=True)
    ids = json.loads(run.stdout)
    for status, correlation in ids.items():
        (held,) = client.list(correlation_id=correlation)
        assert held["status"] == status
