"""Requests made from api/openapi.yaml, valid and invalid ones, to the real sidecar.

Of every request, whatever it holds:

- the answer is no 5xx, its status and content type are documented, its body and
  headers are as the schema says, and an unknown method is 405 with an Allow header;
- what the document forbids is refused, a header or parameter that is missing too;
- what was answered 201, 200 or 202 reads back by GET with its fields and its
  result, number for number;
- what was refused is not held under its event_id.

EXAMPLES in the environment is how many requests each operation gets; the short
form that `make test` runs makes the same ones each time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis.specs.openapi.checks import positive_data_acceptance
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

ROOT = Path(__file__).parents[2]
SIDECAR = os.environ.get("SIDECAR_BIN", str(ROOT / "bin" / "sidecar"))
EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
SHORT = 100


class _UnixConnection(HTTPConnection):
    """A connection to the socket at `path`, whatever host the URL names."""

    def __init__(self, path: str) -> None:
        super().__init__("sidecar", timeout=60)
        self._path = path

    def _new_conn(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(60)
        sock.connect(self._path)
        return sock


class _UnixPool(HTTPConnectionPool):
    def __init__(self, path: str) -> None:
        super().__init__("sidecar", maxsize=1)
        self._path = path

    def _new_conn(self) -> _UnixConnection:  # type: ignore[override]
        return _UnixConnection(self._path)


class _UnixAdapter(HTTPAdapter):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool = _UnixPool(path)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """A session with a sidecar that publishes to a broker of its own."""
    with tempfile.TemporaryDirectory(prefix="prop") as place, open(f"{place}/log", "w+") as log:
        path = f"{place}/s"
        sidecar = subprocess.Popen(
            f"{SIDECAR} run --embedded-broker --brokers 127.0.0.1:{_free_port()} --socket {path}"
            f" --data-dir {place}/data --show-payload --linger 0s".split(),
            stderr=log,
        )
        try:
            with requests.Session() as s:
                s.mount("http://sidecar", _UnixAdapter(path))
                _await_ready(sidecar, path)
                yield s
        finally:
            sidecar.terminate()
            code = sidecar.wait(60)
            log.seek(0)
            text = log.read()
        assert code == 0, text
        assert "panic" not in text, text


def _await_ready(sidecar: subprocess.Popen[bytes], path: str) -> None:
    while subprocess.run([SIDECAR, "healthcheck", "--ready", "--socket", path], capture_output=True).returncode != 0:
        assert sidecar.poll() is None, "the sidecar did not start"


def _mostly(valid: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda n: valid if n else other)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_text = _mostly(st.text(min_size=1, max_size=64), _json)
_id = _mostly(st.uuids().map(str), _json)
_event = st.fixed_dictionaries(
    {
        "correlation_id": _id,
        "workflow_id": _text,
        "workflow_run_id": _text,
        "status": _mostly(st.just("failure"), st.sampled_from(["success", "error", "done"])),
    },
    optional={
        "event_id": _id,
        "result": _mostly(st.dictionaries(st.text(), _json, max_size=4), _json),
        "error": _mostly(st.text(), _json),
        "timestamp": _mostly(st.datetimes().map(lambda t: t.isoformat() + "Z"), _json),
        "event_type": _mostly(st.just("workflow.result"), _json),
    },
)
_line = st.one_of(_event, _event, _json).map(lambda v: json.dumps(v).encode()) | st.binary(max_size=64)
_newline = st.sampled_from([b"\n", b"\r\n", b"\n\n"])
schemathesis.openapi.media_type(
    "application/x-ndjson",
    st.lists(st.tuples(_line, _newline).map(b"".join), max_size=8).map(b"".join),
)

schema = schemathesis.openapi.from_path(ROOT / "api" / "openapi.yaml")
schema.config.update(base_url="http://sidecar")

held: dict[str, None] = {}  # event IDs that a 2xx was answered for, in order
seen: Counter[tuple[str, int]] = Counter()  # answers, by operation and status


@schemathesis.hook
def map_body(_: schemathesis.HookContext, body: Any) -> Any:
    """Make a failure of what the document allows: it knows no conditions between
    fields, and success needs a result, error a text.
    """
    if isinstance(body, dict) and body.get("status") in ("success", "error") and len(str(body)) % 4:
        body["status"] = "failure"
    return body


@schemathesis.hook
def map_path_parameters(_: schemathesis.HookContext, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Let half of the calls that name an event be about one that is held."""
    try:
        number = uuid.UUID((parameters or {})["event_id"]).int
    except (ValueError, TypeError, KeyError, AttributeError):
        return parameters
    if number % 2 and held:
        return {"event_id": list(held)[number % len(held)]}
    return parameters


@schema.parametrize()
@settings(
    max_examples=EXAMPLES or SHORT,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_api(case: schemathesis.Case, session: requests.Session) -> None:
    """Send one request, and hold the answer against the document and what is held."""
    response = case.call(session=session)
    seen[case.operation.label, response.status_code] += 1
    case.validate_response(response, excluded_checks=[positive_data_acceptance])
    operation = case.operation.definition.raw.get("operationId")
    if case.method.upper() != "POST" or operation not in ("postResult", "postBatch"):
        return
    sent = response.request.body or b""
    sent = sent.encode() if isinstance(sent, str) else sent
    if operation == "postResult":
        _check_one(session, sent, response.status_code, response.json())
    elif response.status_code == 200:
        _check_batch(session, sent, response.content)


def _check_batch(session: requests.Session, sent: bytes, answer: bytes) -> None:
    lines = {n: t for n, t in enumerate(sent.split(b"\n"), 1) if t.strip(b" \t\r")}
    answers = [json.loads(t) for t in answer.splitlines()]
    assert [a["line"] for a in answers] == list(lines)
    for a in answers:  # first: a refused line may have the ID of an accepted one
        if "problem" not in a:
            held[a["event_id"]] = None
    for a in answers:
        assert a["status"] < 500, a
        _check_one(session, lines[a["line"]], a["status"], a)


def _check_one(session: requests.Session, sent: bytes, status: int, answer: Mapping[str, Any]) -> None:
    if status < 300:
        held[answer["event_id"]] = None
        _check_held(session, _exactly(sent), answer)
        return
    try:
        event_id = str(uuid.UUID(json.loads(sent)["event_id"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    if event_id not in held:
        assert session.get(f"http://sidecar/v1/results/{event_id}").status_code == 404


def _exactly(text: bytes) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_int=str, parse_float=str)


def _check_held(session: requests.Session, sent: Mapping[str, Any], receipt: Mapping[str, Any]) -> None:
    response = session.get(f"http://sidecar/v1/results/{receipt['event_id']}?payload=true")
    assert response.status_code == 200, response.text
    got = _exactly(response.content)
    assert got["seq"] == str(receipt["seq"])
    for name in ("workflow_id", "workflow_run_id", "status"):
        assert got[name] == sent[name]
    for name in ("correlation_id", "event_id"):
        if sent.get(name) is not None:
            assert got[name] == sent[name].lower()
    assert got["result"] == (sent.get("result") or {})


def test_that_the_requests_went_deep() -> None:
    """Random requests that are all refused, or all taken, would show nothing."""
    for (operation, status), n in sorted(seen.items()):
        print(f"{n:9} {operation} {status}")
    print(f"{seen.total():9} requests, {len(held)} results held")
    wanted = {
        "POST /v1/results": {201, 400, 415, 422},
        "POST /v1/results:batch": {200, 415},
        "GET /v1/results": {200, 400},
        "GET /v1/results/{event_id}": {200, 400, 404},
        "DELETE /v1/results/{event_id}": {404, 409},
        "POST /v1/results/{event_id}:retry": {404, 409},
        "GET /v1/status": {200, 405},
        "GET /v1/history": {200, 405},
    }
    missing = [(name, status) for name, statuses in wanted.items() for status in statuses if not seen[name, status]]
    assert not missing
