"""A pytest fixture: a real sidecar with an embedded broker, for the tests of a workflow.

    def test_the_order_is_approved(workflow_results_sidecar):
        run_my_graph(correlation_id=trigger)              # SidecarClient() finds the sidecar
        event = workflow_results_sidecar.wait_for(trigger)
        assert event["result"] == {"decision": "approved"}

pytest loads this module wherever the package is installed: it starts nothing, and
imports nothing but the client, until a test asks for the fixture.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from workflow_results._http import Request
from workflow_results._transport import Transport
from workflow_results.client import SidecarClient

if TYPE_CHECKING:
    from workflow_results.sidecar import Sidecar

_PAGE = 1000  # results asked for at once, the most that the sidecar takes
_PATIENCE = 10.0  # seconds in which `sidecar await` must end, beyond its own time-out


class ResultsSidecar:
    """What one test sees of the session's sidecar: its own results alone.

    Attributes:
        socket_path: the sidecar's socket; in ``$SIDECAR_SOCKET`` while the test runs.
        brokers: address of the embedded broker, for a Kafka client of the test's own.
    """

    def __init__(self, sidecar: Sidecar, binary: str) -> None:
        """Begin after the results of earlier tests."""
        if sidecar.brokers is None:
            raise ValueError("the fixture needs a sidecar with an embedded broker")
        self.socket_path, self.brokers = sidecar.socket_path, sidecar.brokers
        self._sidecar, self._binary = sidecar, binary
        self._clients: list[SidecarClient] = []
        self._own = self.client()
        self._before = int(self._own.status()["outbox"]["last_seq"])

    def client(self, **options: Any) -> SidecarClient:
        """Return a new client; ``options`` are those of ``SidecarClient``. It is closed after the test."""
        made = self._sidecar.client(**options)
        self._clients.append(made)
        return made

    def results(self, correlation_id: str | UUID | None = None) -> list[dict[str, Any]]:
        """Return what this test handed over, in order: the fields of ``SidecarClient.get`` and ``result``.

        ``state`` is ``pending``, ``published``, or ``parked`` (Kafka refuses it;
        ``reason`` tells why).
        """
        found: list[dict[str, Any]] = []
        after = self._before
        while page := self._own.list(correlation_id=correlation_id, after=after, limit=_PAGE):
            found += page
            after = int(page[-1]["seq"])
        return [self._with_payload(entry["event_id"]) for entry in found]

    def wait_for(self, correlation_id: str | UUID, timeout: float = 10.0) -> dict[str, Any]:
        """Wait at most ``timeout`` seconds for a result in the topic; return its event as Kafka has it.

        Raises:
            TimeoutError: none came; tells what the sidecar holds of it.
            RuntimeError: the topic cannot be read.
        """
        command = [self._binary, "await", "--brokers", self.brokers, "--correlation-id", str(correlation_id)]
        run = subprocess.run(
            [*command, "--timeout", f"{max(int(timeout * 1000), 1)}ms"], env=without_settings(os.environ),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout + _PATIENCE, check=False,
        )  # fmt: skip
        if run.stdout:
            return dict(json.loads(run.stdout))
        if "timed out" in run.stderr:
            held = self.results(correlation_id) or "nothing"
            raise TimeoutError(f"no result of {correlation_id} was published in {timeout:g} s; the sidecar has {held}")
        raise RuntimeError(f"{' '.join(command)}: exit status {run.returncode}: {run.stderr.strip()}")

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            client.close()

    def _with_payload(self, event_id: str) -> dict[str, Any]:
        transport = Transport(self.socket_path)
        try:
            answer = transport.request(Request("GET", f"/v1/results/{event_id}?payload=true"), _PATIENCE)
        finally:
            transport.pool.close()
        if answer.status != 200:
            raise RuntimeError(f"the sidecar does not show result {event_id}: {answer.status} {answer.body!r}")
        return dict(json.loads(answer.body))


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what would make this sidecar another one: the variables of its flags."""
    return {name: value for name, value in environment.items() if not name.startswith("SIDECAR_")}


@pytest.fixture(scope="session")
def workflow_results_sidecar_process() -> Iterator[tuple[Sidecar, str]]:
    """One sidecar with an embedded broker for all tests of the session, and its binary."""
    from workflow_results._binary import find_binary
    from workflow_results.sidecar import Sidecar

    binary = find_binary()
    with pytest.MonkeyPatch.context() as clean:
        for name in set(os.environ) - set(without_settings(os.environ)):
            clean.delenv(name)
        sidecar = Sidecar(embedded_broker=True, binary=binary, args=["--show-payload", "--linger", "0s"])
    with sidecar:
        yield sidecar, binary


@pytest.fixture
def workflow_results_sidecar(
    workflow_results_sidecar_process: tuple[Sidecar, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[ResultsSidecar]:
    """A sidecar for this test; ``SidecarClient()`` finds it by ``$SIDECAR_SOCKET``."""
    view = ResultsSidecar(*workflow_results_sidecar_process)
    monkeypatch.setenv("SIDECAR_SOCKET", view.socket_path)
    yield view
    view.close()
