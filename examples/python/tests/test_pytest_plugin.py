"""The fixture as a project would use it: in a pytest of its own, from the entry point."""

from __future__ import annotations

import subprocess
import sys

import pytest
from binary import sidecar_binary

from workflow_results import _binary

pytest_plugins = ["pytester"]

PROJECT = """
    import os
    from uuid import uuid4

    import pytest

    from workflow_results import SidecarClient


    def workflow(correlation_id, **outcome):
        with SidecarClient() as client:
            client.publish(correlation_id=correlation_id, workflow_id="w", workflow_run_id="r", **outcome)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv(_binary.VARIABLE, sidecar_binary())
    return pytester


def passes(project: pytest.Pytester, tests: str, count: int) -> pytest.RunResult:
    project.makepyfile(PROJECT + tests)
    run = project.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    run.assert_outcomes(passed=count)
    return run


def test_a_workflow_and_its_result(project: pytest.Pytester) -> None:
    passes(
        project,
        """
    def test_success(workflow_results_sidecar):
        trigger = uuid4()
        workflow(trigger, result={"decision": "approved"})
        event = workflow_results_sidecar.wait_for(trigger)
        assert event["correlation_id"] == str(trigger)
        assert event["result"] == {"decision": "approved"}
        assert event["status"] == "success"
        (held,) = workflow_results_sidecar.results()
        assert held["event_id"] == event["event_id"]
        assert held["result"] == {"decision": "approved"}
        assert held["state"] == "published"


    def test_error(workflow_results_sidecar):
        trigger = uuid4()
        workflow(trigger, status="error", error="boom")
        assert workflow_results_sidecar.wait_for(trigger)["error"] == "boom"


    def test_own_results_alone(workflow_results_sidecar):
        assert workflow_results_sidecar.results() == []
        first, second = uuid4(), uuid4()
        with workflow_results_sidecar.client(deadline=5) as client:
            events = [
                {"correlation_id": str(first), "workflow_id": "w", "workflow_run_id": "r", "status": "success",
                 "result": {"n": n}}
                for n in range(1001)
            ]
            client.publish_many(events)
        workflow(second, result={})
        assert [r["result"]["n"] for r in workflow_results_sidecar.results(first)] == list(range(1001))
        assert len(workflow_results_sidecar.results()) == 1002


    def test_nothing_comes(workflow_results_sidecar):
        with pytest.raises(TimeoutError, match="published in 0.2 s; the sidecar has nothing"):
            workflow_results_sidecar.wait_for(uuid4(), timeout=0.2)


    def test_a_wrong_call(workflow_results_sidecar):
        with pytest.raises(RuntimeError, match="is not a UUID"):
            workflow_results_sidecar.wait_for("nonsense")
""",
        5,
    )


def test_one_process_and_no_setting_of_the_shell(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_TOPIC", "of-production")
    monkeypatch.setenv("SIDECAR_SOCKET", "/run/production")
    monkeypatch.setenv("SIDECAR_ALLOW_UID", "4294967294")
    passes(
        project,
        """
    started = []


    @pytest.mark.parametrize("_", range(2))
    def test_same(workflow_results_sidecar, _):
        trigger = uuid4()
        workflow(trigger, result={})
        workflow_results_sidecar.wait_for(trigger)
        assert workflow_results_sidecar.results()[0]["topic"] == "workflow-results"
        assert os.environ["SIDECAR_SOCKET"] == workflow_results_sidecar.socket_path
        started.append(workflow_results_sidecar.client().status()["started_at"])


    def test_of_one_session():
        assert len(started) == 2 and len(set(started)) == 1
        assert os.environ["SIDECAR_SOCKET"] == "/run/production"
""",
        3,
    )


def test_nothing_is_started_unasked(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_binary.VARIABLE, "/nowhere")
    passes(
        project,
        """
    def test_without():
        import sys
        assert "workflow_results.pytest_plugin" in sys.modules
        assert "workflow_results.sidecar" not in sys.modules
""",
        1,
    )


def test_a_missing_binary_is_told(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_binary.VARIABLE, "/nowhere/sidecar")
    project.makepyfile("def test_it(workflow_results_sidecar): pass")
    run = project.runpytest_subprocess("-q")
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["*SidecarNotFound: no sidecar binary*", "*/nowhere/sidecar does not exist*"])


def test_imports_are_light() -> None:
    code = """
import sys
import workflow_results.pytest_plugin
heavy = {"pydantic", "langgraph", "langchain_core", "confluent_kafka", "airflow"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
