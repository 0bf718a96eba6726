"""Both clients against a server that misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from uuid import UUID

import pytest
from broken_server import CREATED, BrokenServer, http
from drivers import Driver, about

from workflow_results import Receipt, ResultRejected, SidecarError, SidecarUnavailable

Make = Callable[..., tuple[Driver, BrokenServer]]
CHUNKED = b"HTTP/1.1 201 X\r\nTransfer-Encoding: chunked\r\n\r\n"


def line(status: int, number: int = 1) -> bytes:
    return b'{"line":%d,"status":%d,' % (number, status) + CREATED[1:] + b"\n"


@pytest.mark.parametrize(
    "trouble",
    [
        [None],
        [b"HTTP/1.1 201 X\r\nContent-Length: 100\r\n\r\nhang up half way"],
        [b"HTTP/1.1 201 X\r\nContent-Type: hang up in the head"],
        [b"HTTP/1.1 201 X\r\nX: hang up without a length\r\n\r\n"],
        [CHUNKED + b"10\r\nhang up"],
        [CHUNKED + b"hang up\r\n"],
        [b"SSH-2.0-hang up\r\n\r\n"],
        [http(408, b'{"detail":"the body did not arrive"}')],
        [http(503, b'{"detail":"busy"}', "Retry-After: 0")],
        [http(500, b"no json"), None],
        [http(429, b"{}", "Retry-After: 0")],
        [http(507, b'{"detail":"full"}', "Retry-After: 0")],
    ],
    ids=[
        "reset", "half an answer", "half a head", "no length", "half a chunk", "no chunk", "no HTTP",
        "408", "503", "500 then reset", "429", "507",
    ],
)  # fmt: skip
def test_sent_again_with_the_same_event_id(broken: Make, trouble: list[bytes | None]) -> None:
    driver, server = broken(*trouble, http(201, CREATED))
    assert driver.call("publish", **about(result={}, event_id=None)).seq == 1
    ids = server.event_ids()
    assert len(ids) == len(trouble) + 1
    assert len(set(ids)) == 1
    UUID(ids[0])


def test_a_batch_is_sent_again_with_the_same_event_ids(broken: Make) -> None:
    """An event_id that is None is one that is left out: the sidecar would make another at each attempt."""
    driver, server = broken(None, http(200, line(201, 1) + line(201, 2)))
    driver.call("publish_many", [about(result={}, event_id=None), about(result={})])
    first, second, *again = server.event_ids()
    assert again == [first, second]
    assert UUID(first) != UUID(second)


def test_no_answer_in_time_is_sent_again(broken: Make) -> None:
    driver, server = broken(lambda n: server.silent(n), http(201, CREATED), attempt_timeout=0.2)
    assert driver.call("publish", **about(result={})).seq == 1
    ids = server.event_ids()
    assert (len(ids), len(set(ids)), server.connections) == (2, 1, 2)


def test_an_attempt_leaves_time_for_another(broken: Make) -> None:
    driver, server = broken(lambda n: server.silent(n), http(201, CREATED), deadline=3)
    assert driver.call("publish", **about(result={})).seq == 1
    assert len(server.event_ids()) == 2


def test_no_answer_until_the_deadline(broken: Make) -> None:
    driver, server = broken(*[lambda n: server.silent(n)] * 20, attempt_timeout=0.2)
    with pytest.raises(SidecarUnavailable, match=r"no answer in time|timed out") as caught:
        driver.call("publish", **about(result={}), deadline=1.0)
    assert caught.value.attempts == len(server.event_ids()) > 1
    assert set(server.event_ids()) == {caught.value.event_id}


def test_an_answer_that_drips_is_given_up(broken: Make) -> None:
    """The time of an attempt is that of the whole answer, not of each of its bytes."""

    def drip(number: int) -> bytes:
        head = b"HTTP/1.1 201 X\r\nContent-Length: 1000000\r\n\r\n"
        server.send(number, head)
        while not server.closing.wait(0.05):
            server.send(number, b"x")
        return b""

    driver, server = broken(drip, http(201, CREATED), attempt_timeout=0.3)
    assert driver.call("publish", **about(result={})).seq == 1
    assert len(server.event_ids()) == 2


def test_old_connections_cost_nothing(broken: Make) -> None:
    """A restart under eight idle connections: one of them fails, and the answer comes at once on a new one."""
    old, new = threading.Barrier(8), threading.Barrier(8)

    def together(_: int) -> bytes:
        old.wait(10)
        return http(201, CREATED)

    def restarted(number: int) -> bytes | None:
        if number <= 8:
            return None
        if len(server.bodies) > 10:
            new.wait(10)
        return http(201, CREATED)

    driver, server = broken(*[together] * 8, *[restarted] * 20)
    driver.publish_at_once([about(result={}) for _ in range(8)])
    assert driver.call("publish", **about(result={})).seq == 1
    assert (len(server.bodies), server.connections) == (10, 9)
    assert server.bodies[8] == server.bodies[9]
    driver.publish_at_once([about(result={}) for _ in range(8)])  # none of them meets an old one
    assert (len(server.bodies), server.connections) == (18, 16)


def test_an_old_connection_is_no_attempt(broken: Make) -> None:
    driver, server = broken(http(201, CREATED), None, http(503, b'{"detail":"busy"}', "Retry-After: 3600"))
    driver.call("publish", **about(result={}))
    with pytest.raises(SidecarUnavailable, match=r"in 1 attempts.*busy"):
        driver.call("publish", **about(result={}))
    assert len(server.bodies) == 3


def test_half_an_answer_on_an_old_connection_is_an_attempt(broken: Make) -> None:
    driver, server = broken(
        http(201, CREATED), b"HTTP/1.1 201 hang up", http(503, b'{"detail":"busy"}', "Retry-After: 3600")
    )
    driver.call("publish", **about(result={}))
    with pytest.raises(SidecarUnavailable, match=r"in 2 attempts.*busy"):
        driver.call("publish", **about(result={}))
    assert len(server.bodies) == 3


def test_an_answer_nobody_asked_for_is_not_taken(broken: Make) -> None:
    """What a kept connection has brought unasked belongs to no request."""
    driver, server = broken(http(201, CREATED) + http(400, b"{}"), http(201, CREATED))
    driver.call("publish", **about(result={}))
    assert driver.call("publish", **about(result={})).seq == 1
    assert server.connections == 2


def test_an_answer_that_comes_unasked_is_not_taken(broken: Make) -> None:
    driver, server = broken(*[http(201, CREATED)] * 2)
    driver.call("publish", **about(result={}))
    server.send(1, http(400, b"{}"))
    assert driver.call("publish", **about(result={})).seq == 1
    assert server.connections == 2


def test_a_connection_is_kept(broken: Make) -> None:
    driver, server = broken(*[http(201, CREATED)] * 3)
    for _ in range(3):
        driver.call("publish", **about(result={}))
    assert server.connections == 1


def test_a_connection_that_is_to_close_is_not_kept(broken: Make) -> None:
    driver, server = broken(http(201, CREATED, "Connection: close"), http(201, CREATED))
    for _ in range(2):
        driver.call("publish", **about(result={}))
    assert server.connections == 2


def test_an_interim_answer_and_chunks(broken: Make) -> None:
    half = len(CREATED) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (CREATED[:half], CREATED[half:], b""))
    driver, _ = broken(b"HTTP/1.1 102 X\r\n\r\n" + CHUNKED + chunks)
    assert driver.call("publish", **about(result={})).seq == 1


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 415, 422])
def test_other_4xx_are_not_repeated(broken: Make, status: int) -> None:
    driver, server = broken(http(status, b'{"title":"no"}'))
    with pytest.raises(ResultRejected) as caught:
        driver.call("publish", **about(result={}))
    assert caught.value.status == status
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"no json", "no JSON"),
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"event_id":"e"}', "lacks 'seq'"),
    ],
    ids=["text", "empty", "no UTF-8", "an array", "fields missing"],
)
def test_what_is_no_receipt_is_an_error_of_ours(broken: Make, body: bytes, says: str) -> None:
    driver, _ = broken(http(201, body), http(200, body + b"\n"))
    with pytest.raises(SidecarError, match=says):
        driver.call("publish", **about(result={}))
    with pytest.raises(SidecarError):
        driver.call("publish_many", [about(result={})])


@pytest.mark.parametrize("body", [b"{}", b'{"results":3}'])
def test_what_is_no_list_is_an_error_of_ours(broken: Make, body: bytes) -> None:
    driver, _ = broken(http(200, body))
    with pytest.raises(SidecarError, match="no list of results"):
        driver.call("list")


def test_what_is_no_problem_is_an_error_of_ours(broken: Make) -> None:
    driver, _ = broken(http(200, b'{"line":1,"status":422,"problem":"wrong"}\n'))
    with pytest.raises(SidecarError, match="no problem document"):
        driver.call("publish_many", [about(result={})])


def test_lines_that_were_full_are_sent_again(broken: Make) -> None:
    full = b'{"line":2,"status":507,"problem":{"detail":"full"}}\n'
    driver, server = broken(http(200, line(201) + full), http(200, line(201)))
    outcomes = driver.call("publish_many", [about(status="success", result={}), about(status="success", result={})])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert server.bodies[1] == server.bodies[0].split(b"\n")[1]


def test_lines_that_stay_full_end_at_the_deadline(broken: Make) -> None:
    full = b'{"line":1,"status":507,"problem":{"detail":"full"}}\n'
    driver, server = broken(*[http(200, full)] * 20)
    with pytest.raises(SidecarUnavailable, match="1 of 1 results: 507 full"):
        driver.call("publish_many", [about(status="success", result={})], deadline=0.5)
    assert len({json.dumps(ids) for ids in server.event_ids()}) == 1
    assert len(server.bodies) > 1
