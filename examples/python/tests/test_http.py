from __future__ import annotations

import pytest

from workflow_results import _http
from workflow_results._http import AnswerParser, BrokenAnswer, Request, Response

ANSWERS = {
    "length": b"HTTP/1.1 201 Created\r\ncontent-LENGTH: 5\r\nRetry-After: 7\r\n\r\nhello",
    "chunks": b"HTTP/1.1 201 Created\r\nRetry-After:7\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\nHTTP/1.1 201\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_in_pieces_of_any_size(answer: bytes) -> None:
    for size in range(1, len(answer) + 1):
        parser = AnswerParser()
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        *early, last = [parser.feed(piece) for piece in pieces]
        assert early == [None] * len(early)
        assert last == Response(201, 7.0, b"hello", keep=True)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_end_before_the_end_is_told(answer: bytes) -> None:
    for size in range(len(answer)):
        parser = AnswerParser()
        if size:
            assert parser.feed(answer[:size]) is None
        assert parser.begun == (size > 0)
        with pytest.raises(BrokenAnswer):
            parser.feed(b"")


def test_no_body() -> None:
    assert AnswerParser().feed(b"HTTP/1.1 204 No Content\r\n\r\n") == Response(204, None, b"", keep=True)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1",
    ],
    ids=["1.0", "close", "more than was asked for"],
)
def test_the_last_answer_of_a_connection(answer: bytes) -> None:
    response = AnswerParser().feed(answer)
    assert response is not None
    assert not response.keep


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200\r\n",
        b"HTTP/1.1 abc\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    ],
    ids=["version", "status", "no length", "negative", "no number", "coding", "chunk", "negative chunk", "long chunk"],
)
def test_what_is_no_answer(answer: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        AnswerParser().feed(answer)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "MAX_HEAD_BYTES", 100)
    monkeypatch.setattr(_http, "MAX_BODY_BYTES", 1000)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for answer in (
        b"HTTP/1.1 200 OK" + b"x" * 101,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        chunked + (b"1f4\r\n" + b"x" * 500 + b"\r\n") * 2 + b"1\r\n",
        chunked + b"0\r\n" + b"A: b\r\n" * 50,
    ):
        with pytest.raises(BrokenAnswer):
            AnswerParser().feed(answer)


def test_a_request() -> None:
    request = Request("POST", "/v1/results", b"{}", {"Content-Type": "application/json"})
    assert bytes(request) == (
        b"POST /v1/results HTTP/1.1\r\nHost: sidecar\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    for bad in (Request("GET", "/a b"), Request("GET", "/", None, {"X": "a\nb"})):
        with pytest.raises(ValueError, match="not in"):
            bytes(bad)
