from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from binary import sidecar_binary

from workflow_results import Receipt, SidecarClient, SidecarUnavailable, _binary
from workflow_results._forwarder import parse
from workflow_results.sidecar import Sidecar, SidecarNotFound, SidecarStartError

Make = Callable[..., Sidecar]


def about(**more: object) -> dict[str, Any]:
    return {"correlation_id": str(uuid4()), "workflow_id": "w", "workflow_run_id": "r", "result": {}, **more}


def publish(own: Sidecar, **more: Any) -> Receipt:
    """Hand over one result, with a client that hangs up."""
    with own.client() as client:
        return client.publish(**about(), **more)


@pytest.fixture
def real() -> str:
    return sidecar_binary()


@pytest.fixture
def make(real: str) -> Iterator[Make]:
    """Make sidecars of the real binary; they are stopped at the end."""
    made: list[Sidecar] = []

    def new(**options: Any) -> Sidecar:
        options.setdefault("binary", real)
        options["args"] = ["--linger", "0s", *options.get("args", ())]
        made.append(Sidecar(**options))
        return made[-1]

    yield new
    for one in made:
        one.stop()


class Watch(logging.Handler):
    """Keeps log records, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._grew = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._grew:
            self.records.append(record)
            self._grew.notify_all()

    def await_text(self, text: str) -> logging.LogRecord:
        def found() -> logging.LogRecord | None:
            return next((r for r in self.records if text in r.getMessage()), None)

        with self._grew:
            assert self._grew.wait_for(found, 30), f"{text!r} was never logged: {self.texts()}"
            record = found()
        assert record is not None
        return record

    def texts(self) -> list[str]:
        return [r.getMessage() for r in self.records]


@pytest.fixture
def log() -> Iterator[Watch]:
    watch, logger = Watch(), logging.getLogger("workflow_results.sidecar")
    before = logger.level
    logger.addHandler(watch)
    logger.setLevel(logging.DEBUG)
    yield watch
    logger.removeHandler(watch)
    logger.setLevel(before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def script(path: Path, text: str) -> Path:
    """Put a program in place at once: a start finds the old one or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_text("#!/bin/sh\n" + text)
    fresh.chmod(0o755)
    fresh.rename(path)
    return path


def held(real: str, data_dir: Path) -> list[str]:
    """The state of each result in a data directory."""
    run = subprocess.run(
        [real, "outbox", "list", "--json", "--limit=1000", f"--data-dir={data_dir}", f"--socket={data_dir}/none"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [entry["state"] for entry in json.loads(run.stdout)]


def await_end(pid: int, seconds: float = 30) -> None:
    """Wait for the end of a process that may be nobody's child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([fd], [], [], seconds)
    finally:
        os.close(fd)
    assert ended, f"PID {pid} still runs after {seconds} s"


# Start and stop.


def test_ready_then_gone(make: Make) -> None:
    own = make(embedded_broker=True)
    with pytest.raises(RuntimeError, match="start"):
        _ = own.socket_path
    with own as same:
        assert same is own.start()
        directory = Path(own.socket_path).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert own.brokers is not None
        assert own.brokers.startswith("127.0.0.1:")
        assert not own.attached
        with own.client(deadline=10) as client:
            assert client.publish(**about(), wait_published=10).state == "published"
        pid = own.pid
        assert pid is not None
    assert not directory.exists()
    assert own.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    own.stop()  # again: nothing to do


def test_a_stopped_one_starts_again_with_what_it_held(make: Make, tmp_path: Path) -> None:
    own = make(brokers=f"127.0.0.1:{free_port()}", data_dir=tmp_path / "o", args=["--shutdown-timeout", "10ms"])
    with own:
        event = publish(own).event_id
    with own, own.client() as client:
        assert client.get(event)["state"] == "pending"


def test_stop_drains_while_clients_keep_connections(make: Make, real: str, tmp_path: Path) -> None:
    own = make(embedded_broker=True, data_dir=tmp_path / "o").start()
    client = own.client()
    client.publish_many([about(status="success") for _ in range(900)])
    began = time.monotonic()
    own.stop()
    assert time.monotonic() - began < 10  # not the 25 s that it waits for clients
    assert held(real, tmp_path / "o") == ["published"] * 900


def test_stop_ends_in_time_though_kafka_is_away(make: Make, real: str, tmp_path: Path, log: Watch) -> None:
    own = make(brokers=f"127.0.0.1:{free_port()}", data_dir=tmp_path / "o", stop_timeout=2).start()
    publish(own)
    own.stop()
    log.await_text("pending results stay in the data directory")
    assert not any("is killed" in text for text in log.texts())
    assert held(real, tmp_path / "o") == ["pending"]


def test_stop_kills_what_does_not_end(make: Make, real: str, tmp_path: Path, log: Watch) -> None:
    own = make(brokers="127.0.0.1:1", data_dir=tmp_path / "o", stop_timeout=0.3, args=["--shutdown-timeout", "1h"])
    publish(own.start())
    own.stop()
    log.await_text("did not end in 0.3 s and is killed")
    assert held(real, tmp_path / "o") == ["pending"]


# What keeps it from starting.


def test_wrong_flags_are_told(make: Make, log: Watch) -> None:
    own = make(embedded_broker=True, args=["--delivery", "sometimes"])
    with pytest.raises(SidecarStartError, match=r"exit status 2(.|\n)*exactly-once") as caught:
        own.start()
    assert caught.value.exit_status == 2
    log.await_text('"--delivery" flag: must be one of')
    assert own.pid is None
    assert not any("started again" in text for text in log.texts())


def test_data_dir_that_cannot_be_made(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    own = make(brokers="127.0.0.1:1", data_dir=tmp_path / "file" / "o")
    began = time.monotonic()
    with pytest.raises(SidecarStartError, match=r"make the data directory: mkdir .*not a directory") as caught:
        own.start()
    assert caught.value.exit_status == 1
    assert time.monotonic() - began < 10  # at once, not after ready_timeout


@pytest.mark.parametrize("program", ["exec sleep 600", "trap '' TERM; while :; do sleep 0.1; done"])
def test_not_ready_in_time(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("workflow_results._supervisor._GRACE", 0.3)
    pid_file = tmp_path / "pid"
    binary = script(tmp_path / "p", f"echo $$ > {pid_file}; {program}")
    own = make(embedded_broker=True, binary=binary, ready_timeout=0.5)
    with pytest.raises(SidecarStartError, match=r"not ready in 0.5 s: FileNotFoundError"):
        own.start()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_another_program_at_its_socket(make: Make, tmp_path: Path) -> None:
    """Somebody else's answer must not pass for ours."""
    live = make(embedded_broker=True, socket_path=tmp_path / "s").start()
    own = make(embedded_broker=True, socket_path=tmp_path / "s")
    with pytest.raises(SidecarStartError, match="in use by another sidecar"):
        own.start()
    silent = script(tmp_path / "p", "exec sleep 600")
    idle = make(embedded_broker=True, socket_path=tmp_path / "s", binary=silent, ready_timeout=0.3)
    with pytest.raises(SidecarStartError, match=f"PID {live.pid} listens at its socket"):
        idle.start()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "brokers is missing"),
        ({"brokers": "h:1"}, "data_dir is missing"),
        ({"brokers": "h:1", "embedded_broker": True}, "chooses its own address"),
        ({"brokers": "h:1", "data_dir": "o", "attach": True}, "needs socket_path"),
        ({"embedded_broker": True, "socket_path": "/" + "x" * 107}, "107 bytes"),
    ],
)
def test_arguments_that_cannot_be_right(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sidecar(**options)


def test_settings_from_the_environment(make: Make, tmp_path: Path) -> None:
    env = {"SIDECAR_BROKERS": "127.0.0.1:1", "SIDECAR_DATA_DIR": str(tmp_path / "o"), "SIDECAR_TOPIC": "t"}
    with make(env=env) as own, own.client() as client:
        status = client.status()
    assert status["brokers"] == ["127.0.0.1:1"]
    assert status["data_dir"] == str(tmp_path / "o")


# Crashes.


@pytest.mark.parametrize(
    ("by", "told"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGQUIT, "exit status 2"), (signal.SIGTERM, "exit status 0")]
)
def test_started_again_when_it_ends_unasked(make: Make, log: Watch, by: signal.Signals, told: str) -> None:
    """SIGQUIT ends it as a panic does: with Go's trace and, like wrong flags, with status 2."""
    with make(embedded_broker=True) as own, own.client(deadline=20) as client:
        first = own.pid
        assert first is not None
        kept = client.publish(**about(), wait_published=10).event_id
        client.close()  # a client that is connected would hold the drain of SIGTERM
        os.kill(first, by)
        await_end(first)
        assert client.publish(**about(), wait_published=10).state == "published"
        assert client.get(kept)["state"] == "published"
        assert own.pid not in (None, first)
        assert f"ended unasked with {told}" in log.await_text("started again in 0.1 s").getMessage()


def test_pauses_grow_and_end_with_success(make: Make, real: str, tmp_path: Path, log: Watch) -> None:
    program = script(tmp_path / "p", f'exec {real} "$@"')
    with make(embedded_broker=True, binary=program) as own:
        pid = own.pid
        assert pid is not None
        script(program, "echo broken; exit 1")
        os.kill(pid, signal.SIGKILL)
        for pause in ("0.1", "0.2", "0.4"):
            log.await_text(f"started again in {pause} s")
        script(program, f'exec {real} "$@"')
        assert publish(own, wait_published=10).state == "published"
    assert log.await_text("broken").levelno == logging.ERROR


@pytest.mark.parametrize(("settled", "second"), [(30.0, "0.2"), (0.0, "0.1")])
def test_pauses_begin_anew_after_a_long_life(
    make: Make, log: Watch, monkeypatch: pytest.MonkeyPatch, settled: float, second: str
) -> None:
    monkeypatch.setattr("workflow_results._supervisor._SETTLED", settled)
    with make(embedded_broker=True) as own:
        for _ in range(2):
            pid = own.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await_end(pid)
            publish(own)  # it runs again
    told = [text for text in log.texts() if "started again in" in text]
    assert [text.split()[-2] for text in told] == ["0.1", second]


def test_a_program_that_is_away_for_a_while(make: Make, real: str, tmp_path: Path, log: Watch) -> None:
    program = script(tmp_path / "p", f'exec {real} "$@"')
    with make(embedded_broker=True, binary=program) as own:
        pid = own.pid
        assert pid is not None
        program.unlink()
        os.kill(pid, signal.SIGKILL)
        log.await_text("cannot start")
        script(program, f'exec {real} "$@"')
        assert publish(own).seq == 1


def test_stop_during_a_pause(make: Make, real: str, tmp_path: Path, log: Watch) -> None:
    program = script(tmp_path / "p", f'exec {real} "$@"')
    own = make(embedded_broker=True, binary=program).start()
    pid = own.pid
    assert pid is not None
    script(program, "exit 1")
    os.kill(pid, signal.SIGKILL)
    log.await_text("started again in 1.6 s")
    began = time.monotonic()
    own.stop()
    assert time.monotonic() - began < 1


def test_given_up_when_it_refuses_its_flags_later(make: Make, real: str, tmp_path: Path, log: Watch) -> None:
    program = script(tmp_path / "p", f'exec {real} "$@"')
    with make(embedded_broker=True, binary=program) as own:
        pid = own.pid
        assert pid is not None
        script(program, f'exec {real} "$@" --of-an-older-version')
        os.kill(pid, signal.SIGKILL)
        log.await_text("refuses its flags")
        with pytest.raises(SidecarStartError, match="older-version") as caught:
            own.client()
        assert caught.value.exit_status == 2
        assert own.pid is None


# Its end with its parent.

PARENT = """
import os, sys, time
from workflow_results.sidecar import Sidecar
own = Sidecar(brokers=sys.argv[1], data_dir=sys.argv[2], args=["--linger", "0s"]).start()
forked = os.fork()
if forked == 0:
    sys.stdin.read()
    print("the fork lived on", flush=True)
    os._exit(0)
own.client().publish(correlation_id=sys.argv[3], workflow_id="w", workflow_run_id="r", result={})
print(own.pid, flush=True)
time.sleep(600)
"""


def parent(real: str, place: Path, *args: str, code: str = PARENT, **options: Any) -> subprocess.Popen[str]:
    """Run a program that has a sidecar; one that is killed leaves its private directory in ``place``."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, _binary.VARIABLE: real, "TMPDIR": str(place)}, **options,
    )  # fmt: skip


def test_a_killed_parent_lets_it_drain_and_end(make: Make, real: str, tmp_path: Path) -> None:
    """Kafka comes back only after the parent's death: what is published then, the drain has published."""
    broker = f"127.0.0.1:{free_port()}"
    with parent(real, tmp_path, broker, str(tmp_path / "o"), str(uuid4())) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait()
        with make(brokers=broker, data_dir=tmp_path / "kafka", args=["--embedded-broker"]):
            await_end(pid)
        assert held(real, tmp_path / "o") == ["published"]
        process.stdin.close()
        assert process.stdout.read() == "the fork lived on\n"


def test_an_exit_without_stop_drains(real: str, tmp_path: Path) -> None:
    code = """
import sys
from workflow_results.sidecar import Sidecar
own = Sidecar(embedded_broker=True, data_dir=sys.argv[1]).start()
client = own.client()
client.publish(correlation_id=sys.argv[2], workflow_id="w", workflow_run_id="r", result={})
print(own.pid, own.socket_path)
"""
    with parent(real, tmp_path, str(tmp_path / "o"), str(uuid4()), code=code) as process:
        assert process.stdout is not None
        pid, path = process.stdout.read().split()
    assert process.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert not Path(path).parent.exists()
    assert held(real, tmp_path / "o") == ["published"]


def test_ctrl_c_is_the_parents_affair(real: str, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole group: the sidecar must serve until its parent stops it."""
    code = """
import signal, sys, time
from workflow_results.sidecar import Sidecar
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
with Sidecar(embedded_broker=True, data_dir=sys.argv[1]) as own:
    try:
        print("up", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        with own.client() as client:
            client.publish(correlation_id=sys.argv[2], workflow_id="w", workflow_run_id="r", result={})
"""
    with parent(real, tmp_path, str(tmp_path / "o"), str(uuid4()), code=code, process_group=0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 0
    assert held(real, tmp_path / "o") == ["published"]


# Forks.


def in_fork(own: Sidecar, pid: int | None) -> None:
    assert own.attached
    assert own.pid == pid
    assert own.start() is own
    with own.client() as client:
        assert client.publish(**about(), wait_published=10).state == "published"
    own.stop()
    with own as same, same.client() as client:
        client.status()


def test_a_forked_worker_uses_the_parents(make: Make) -> None:
    with make(embedded_broker=True) as own:
        workers = [multiprocessing.get_context("fork").Process(target=in_fork, args=(own, own.pid)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert Path(own.socket_path).exists()
        assert publish(own).seq == 3


def test_a_fork_that_exits_as_a_program_does_leaves_it_alone(real: str, tmp_path: Path) -> None:
    """sys.exit runs what atexit has, which the fork has from its parent."""
    code = """
import os, sys
from workflow_results.sidecar import Sidecar
with Sidecar(embedded_broker=True, args=["--linger", "0s"]) as own:
    if os.fork() == 0:
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    own.client(deadline=5).publish(correlation_id=sys.argv[1], workflow_id="w", workflow_run_id="r", result={})
    print("stored")
"""
    with parent(real, tmp_path, str(uuid4()), code=code) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "stored\n"
    assert process.returncode == 0


def test_one_made_before_a_fork_can_be_started_in_it(make: Make) -> None:
    own = make(embedded_broker=True)
    pid = os.fork()
    if pid == 0:
        try:
            with own:
                ours = own.pid is not None and not own.attached
            os._exit(0 if ours else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert own.pid is None


def test_it_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="socket_path"):
        pickle.dumps(Sidecar(embedded_broker=True))


# Two processes, one outbox. A second object stands for a second process: locks are of open files.


def test_a_second_one_is_refused(make: Make, tmp_path: Path) -> None:
    with make(brokers="127.0.0.1:1", data_dir=tmp_path / "o"):
        second = make(brokers="127.0.0.1:1", data_dir=tmp_path / "o")
        with pytest.raises(SidecarStartError, match="data directory is in use by another process"):
            second.start()


def test_attach(make: Make, tmp_path: Path) -> None:
    options = {"brokers": "127.0.0.1:1", "data_dir": tmp_path / "o", "socket_path": tmp_path / "s", "attach": True}
    options["args"] = ["--shutdown-timeout", "100ms"]
    with make(**options) as first:
        assert not first.attached  # there was none
        with make(**options) as second:
            assert second.attached
            assert second.pid is None
            assert second.socket_path == first.socket_path
            event = publish(second).event_id
        with first.client() as client:
            assert client.get(event)["state"] == "pending"
    with pytest.raises(SidecarUnavailable):
        SidecarClient(str(tmp_path / "s"), deadline=0.1).status()


def test_attach_when_all_start_at_once(make: Make, tmp_path: Path) -> None:
    options = {"brokers": "127.0.0.1:1", "data_dir": tmp_path / "o", "socket_path": tmp_path / "s", "attach": True}
    several = [make(**options, args=["--shutdown-timeout", "100ms"]) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Sidecar.start, several))
    assert sorted(one.attached for one in several) == [False, True, True, True]
    for one in several:
        publish(one)


# Its log.


def test_log_is_forwarded_without_payloads(make: Make, log: Watch, caplog: pytest.LogCaptureFixture) -> None:
    with make(embedded_broker=True, args=["--log-level", "debug"]) as own:
        with own.client() as client:
            client.publish(**about(result={"secret": "p4yl04d"}), wait_published=10)
        ready = log.await_text("ready ")
        assert ready.levelno == logging.INFO
        assert ready.sidecar_fields["socket"] == own.socket_path  # type: ignore[attr-defined]
        assert log.await_text("topic created").name == "workflow_results.sidecar"
    assert "everything is published" in log.texts()[-1]
    assert any(record.levelno == logging.DEBUG for record in log.records)
    assert not any("p4yl04d" in str(vars(record)) for record in log.records)


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (b'{"time":"t","level":"WARN","msg":"m","n":1}', logging.WARNING, "m n=1"),
        (b'{"level":"ERROR+1","msg":"100 %d","error":"a b"}', logging.ERROR, '100 %d error="a b"'),
        (b'{"level":"DEBUG-4","msg":"m","list":["x"]}', logging.DEBUG, 'm list=["x"]'),
        (b"sidecar: unknown flag", logging.ERROR, "sidecar: unknown flag"),
        (b"\xff[]", logging.ERROR, "\ufffd[]"),
        (b"[1]", logging.ERROR, "[1]"),
        (b"{}", logging.ERROR, "{}"),
    ],
)
def test_lines(line: bytes, level: int, text: str) -> None:
    assert parse(line)[:2] == (level, text)


def test_a_stuck_log_handler_holds_nothing_up(make: Make, log: Watch) -> None:
    go_on = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            go_on.wait(60)

    stuck, logger = Stuck(), logging.getLogger("workflow_results.sidecar")
    logger.addHandler(stuck)
    try:
        with make(embedded_broker=True, args=["--log-level", "debug"]) as own:
            client = own.client()  # stop closes its connection
            for _ in range(120):  # each logs some dozen lines: far more than a pipe and the queue hold
                assert client.publish(**about(), wait_published=10).state == "published"
            go_on.set()
            log.await_text("log were dropped")
    finally:
        go_on.set()
        logger.removeHandler(stuck)


# Its socket.


def test_socket_path_fits_whatever_tmpdir_is(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with make(embedded_broker=True) as own:
        assert own.socket_path.startswith("/tmp/wr-")
        assert publish(own).seq == 1
    edge = tmp_path / ("x" * (107 - len(f"{tmp_path}//wr-12345678/s")))
    edge.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(edge))
    with make(embedded_broker=True) as own:
        assert len(os.fsencode(own.socket_path)) == 107
        assert publish(own).seq == 1
    assert list(edge.iterdir()) == list(deep.iterdir()) == []


# Its binary.


def test_binary_by_argument_then_variable_then_package_then_path(
    real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name / "sidecar" for name in ("argument", "variable", "package", "path")}
    for place in places.values():
        place.parent.mkdir()
        script(place, f'exec {real} "$@"')
    monkeypatch.setenv(_binary.VARIABLE, str(places["variable"]))
    monkeypatch.setattr(_binary, "PACKAGED", places["package"])
    monkeypatch.setenv("PATH", str(places["path"].parent), prepend=os.pathsep)
    assert _binary.find_binary(places["argument"]) == str(places["argument"])
    assert _binary.find_binary() == str(places["variable"])
    monkeypatch.delenv(_binary.VARIABLE)
    assert _binary.find_binary() == str(places["package"])
    places["package"].unlink()
    assert _binary.find_binary() == str(places["path"])


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("echo 'sidecar 1.0, a proxy'", "answers `version` with 'sidecar 1.0, a proxy'"),
        ("echo 'sidecar v1 (go1.26, SQLite 3.5)'; exit 3", "exit status 3"),
        ("exec sleep 600", "timed out"),
    ],
)
def test_another_program_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str) -> None:
    other = script(tmp_path / "sidecar", program)
    monkeypatch.setattr(_binary, "_ANSWER_TIMEOUT", 0.5)
    monkeypatch.delenv(_binary.VARIABLE, raising=False)
    monkeypatch.setattr(_binary, "PACKAGED", tmp_path / "_bin" / "sidecar")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SidecarNotFound) as caught:
        _binary.find_binary()
    argument, variable, package, path = caught.value.looked_at
    assert argument == "the argument binary=: not given"
    assert variable == f"${_binary.VARIABLE}: not set"
    assert package == f"the package: {tmp_path}/_bin/sidecar does not exist"
    assert f"{other} is another program" in path
    assert says in path
    assert "make wheel" in str(caught.value)


def test_a_named_binary_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for path, says in ((tmp_path / "none", "does not exist"), (tmp_path, "is not a file")):
        with pytest.raises(SidecarNotFound, match=f"binary=: .*{says}"):
            Sidecar(embedded_broker=True, binary=path).start()
    monkeypatch.setenv(_binary.VARIABLE, str(plain))
    with pytest.raises(SidecarNotFound, match=r"SIDECAR: .*may not be executed"):
        Sidecar(embedded_broker=True).start()
    monkeypatch.delenv(_binary.VARIABLE)
    monkeypatch.setattr(_binary, "PACKAGED", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SidecarNotFound, match="PATH: no `sidecar`"):
        Sidecar(embedded_broker=True).start()
