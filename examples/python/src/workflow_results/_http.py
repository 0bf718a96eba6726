"""HTTP/1.1 without any I/O: what is written for a request, and what is read of an answer.

Both transports read with this parser, so that the same bytes mean the same to both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20  # many times the largest answer of a sidecar: a batch of 4096 lines

_STATUS_LINE = re.compile(r"(HTTP/1\.[01]) ([1-5][0-9][0-9])(?: .*)?")
_NUMBER = re.compile(r"[0-9]{1,18}")
_UNSAFE = re.compile(r"[^\x21-\x7e]")  # in a request's target
_UNSAFE_VALUE = re.compile(r"[^\x20-\x7e]")  # in a header's value


class BrokenAnswer(Exception):
    """The answer ended early, is larger than any of a sidecar, or is no HTTP."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and what its caller wants of it."""

    method: str
    target: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0  # seconds that the sidecar may take for it, beside the answer itself
    event_id: str | None = None  # of the result in it, for the error that names it

    def __bytes__(self) -> bytes:
        """Write it.

        Raises:
            ValueError: a line break or other control character in the target or in a header.
        """
        head = _request_head(self.method, self.target, *self.headers.items())
        if self.body is None:
            return head + b"\r\n"
        return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(self.body), self.body)


@functools.lru_cache(maxsize=16)  # most are the same again
def _request_head(method: str, target: str, *headers: tuple[str, str]) -> bytes:
    if _UNSAFE.search(target):
        raise ValueError(f"not in a request's target: {target!r}")
    lines = [f"{method} {target} HTTP/1.1", "Host: sidecar"]
    for name, value in headers:
        if _UNSAFE_VALUE.search(value):
            raise ValueError(f"not in the header {name}: {value!r}")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, ""]).encode("ascii")


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    retry_after: float | None  # seconds
    body: bytes
    keep: bool  # the connection may be used again


class AnswerParser:
    """Takes an answer in pieces of any size."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self.begun = False  # a byte of the answer has been read
        self._buffer = bytearray()
        self._steps = self._parse()
        next(self._steps)

    def feed(self, data: bytes) -> Response | None:
        """Take what was read, ``b""`` at the connection's end; the answer, once it is whole.

        Raises:
            BrokenAnswer: it will never be whole.
        """
        if not data:
            raise BrokenAnswer("the connection ended in the middle of the answer" if self.begun else "no answer came")
        self.begun = True
        self._buffer += data
        return next(self._steps)

    def _parse(self) -> Generator[Response | None]:
        """Yield None whenever more is needed, at last the answer."""
        status = 100
        while status < 200:  # interim answers come before the answer
            status, version, headers = yield from self._head()
        coding = headers.get("transfer-encoding", "").lower()
        if status in (204, 304):
            body = b""
        elif coding == "chunked":
            body = yield from self._chunks()
        elif coding:
            raise BrokenAnswer(f"an unknown Transfer-Encoding: {coding[:100]!r}")
        else:
            body = yield from self._take(_length(headers.get("content-length"), MAX_BODY_BYTES))
        # Bytes beyond the answer belong to nothing that was asked.
        keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close" and not self._buffer
        yield Response(status, _seconds(headers.get("retry-after")), body, keep)

    def _head(self) -> Generator[None, None, tuple[int, str, dict[str, str]]]:
        start = yield from self._line(MAX_HEAD_BYTES)
        match = _STATUS_LINE.fullmatch(start)
        if match is None:
            raise BrokenAnswer(f"no status line of HTTP/1.1: {start[:100]!r}")
        return int(match[2]), match[1], (yield from self._headers(MAX_HEAD_BYTES - len(start)))

    def _headers(self, left: int) -> Generator[None, None, dict[str, str]]:
        """Take the lines up to the empty one, of at most so many bytes, their ends included."""
        while not self._buffer.startswith(b"\r\n"):
            if (end := self._buffer.find(b"\r\n\r\n", 0, left + 4)) >= 0:
                block = (yield from self._take(end + 4))[:-4].decode("latin-1")
                pairs = [line.partition(":") for line in block.split("\r\n")]
                return {name.lower(): value.strip() for name, _, value in pairs}
            if len(self._buffer) >= left + 4:
                raise BrokenAnswer(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
            yield
        yield from self._take(2)
        return {}

    def _chunks(self) -> Generator[None, None, bytes]:
        body = bytearray()
        while True:
            size = (yield from self._line(MAX_HEAD_BYTES)).partition(";")[0].strip()
            if not re.fullmatch(r"[0-9A-Fa-f]{1,8}", size) or int(size, 16) > MAX_BODY_BYTES - len(body):
                raise BrokenAnswer(f"a chunk's size is wrong or too large: {size[:100]!r}")
            if int(size, 16) == 0:
                break
            body += yield from self._take(int(size, 16))
            if (yield from self._line(0)):
                raise BrokenAnswer("a chunk does not end where its size says")
        left = MAX_HEAD_BYTES
        while trailer := (yield from self._line(left)):
            left -= len(trailer)
        return bytes(body)

    def _line(self, most: int) -> Generator[None, None, str]:
        """Take a line of at most so many bytes, without its end."""
        while (end := self._buffer.find(b"\r\n", 0, most + 2)) < 0:
            if len(self._buffer) >= most + 2:
                raise BrokenAnswer(f"a line is longer than {most} bytes")
            yield
        return (yield from self._take(end + 2))[:-2].decode("latin-1")

    def _take(self, size: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < size:
            yield
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _length(text: str | None, most: int) -> int:
    """Read a Content-Length. An answer that has none ends anywhere: it cannot be told from half of one."""
    if text is None or not _NUMBER.fullmatch(text):
        raise BrokenAnswer(f"no Content-Length: {text!r}")
    if int(text) > most:
        raise BrokenAnswer(f"the answer has {text} bytes, more than {most}")
    return int(text)


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and re.fullmatch(r"[0-9]{1,9}", retry_after) else None
