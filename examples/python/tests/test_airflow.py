"""Real task instances of a real Airflow, whose triggers a stand-in of an agent answers: it can be told how."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import airflow_home
import airflow_versions
import pytest
from airflow_agent import RESULTS, TRIGGERS, Agent
from airflow_world import Run, dags_fixture, errors, waiting
from kafka import Background, Kafka, eventually, kafka_fixture

from workflow_results import hub

FIXTURES = (dags_fixture, kafka_fixture)


@pytest.fixture(scope="module", name="agent")
def agent_fixture(kafka: Kafka) -> Iterator[Agent]:
    kafka.create_topic(TRIGGERS)
    kafka.create_topic(RESULTS, 3)
    airflow_home.connect("kafka_default", kafka.addr)
    airflow_home.connect("kafka_down", "127.0.0.1:1")
    made = Agent(kafka)
    yield made
    made.close()
    hub._stop_all()  # else they would tell of the broker that the session ends


def test_success(agent: Agent, dags: Any) -> None:
    run = Run(dags["worker"], do="succeed", workflow="review")
    assert run.state == "success"
    assert run.xcom() == {"answer": "of worker"}
    (trigger,) = agent.of(run.id)
    event = run.xcom(key="workflow_event")
    assert (trigger["workflow_id"], trigger["workflow_run_id"]) == ("review", "run of ask")
    assert (event["correlation_id"], event["status"], event["topic"]) == (trigger["event_id"], "success", RESULTS)


def test_deferred_success(agent: Agent, dags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflow_results.airflow import TriggerWorkflowOperator

    events = []
    complete = TriggerWorkflowOperator.execute_complete

    def noting(self: Any, context: Any, event: dict[str, Any]) -> Any:
        events.append(event)
        return complete(self, context, event)

    monkeypatch.setattr(TriggerWorkflowOperator, "execute_complete", noting)
    run = Run(dags["deferred"], do="succeed")
    assert run.state == "success"
    assert run.xcom() == {"answer": "of deferred"}
    (trigger,) = agent.of(run.id)
    assert trigger["workflow_run_id"] == trigger["event_id"]
    (event,) = events
    assert event["status"] == "found"
    assert event["reference"]["correlation_id"] == trigger["event_id"]
    assert event.keys() == {"correlation_id", "status", "reference"}  # not the result itself


@pytest.mark.parametrize("dag", ["worker", "deferred"])
@pytest.mark.parametrize(
    ("do", "kind", "told"),
    [
        ("fail", "WorkflowTaskFailed", "workflow review, run .* status failure: declined by the reviewer"),
        ("break", "WorkflowTaskErrored", "workflow review, run .* status error: the model is away"),
    ],
)
def test_workflow_that_ends_badly(agent: Agent, dags: Any, dag: str, do: str, kind: str, told: str) -> None:
    run = Run(dags[dag], do=do, workflow="review")
    assert run.state == "failed"
    error = errors[-1]
    assert type(error).__name__ == kind
    assert re.search(told, str(error))
    event = run.xcom(key="workflow_event")
    assert event["error"] in str(error)
    assert event["correlation_id"] in str(error)
    assert run.xcom() is None


@pytest.mark.skipif(airflow_versions.AIRFLOW_3, reason="Airflow 3 leaves it to the operator")
def test_airflow_2_enforces_execution_timeout_after_a_deferral(agent: Agent, dags: Any) -> None:
    """It does so before it resumes the task, which cannot tell more then."""
    from airflow.exceptions import AirflowTaskTimeout

    with pytest.raises(AirflowTaskTimeout):
        Run(dags["impatient_deferred"], do="wait")


@pytest.mark.parametrize(
    ("dag", "limit"),
    [
        ("impatient", "1 s"),
        pytest.param(
            "impatient_deferred", "2 s", marks=pytest.mark.skipif(not airflow_versions.AIRFLOW_3, reason="see above")
        ),
    ],
)
def test_timeout(agent: Agent, dags: Any, dag: str, limit: str) -> None:
    run = Run(dags[dag], do="wait")
    assert run.state == "failed"
    (trigger,) = agent.of(run.id)
    told = str(errors[-1])
    assert type(errors[-1]).__name__ == "WorkflowTimedOut"
    for part in (f"within {limit}", trigger["event_id"], RESULTS, TRIGGERS, "without any trouble"):
        assert part in told


def test_retry_after_a_timeout_waits_for_the_same_trigger(agent: Agent, dags: Any) -> None:
    """The result comes between the two tries."""
    run = Run(dags["retried"], do="wait")
    assert run.state == "success"
    assert run.xcom() == {"answer": "late"}
    assert run.tasks()["ask", -1].try_number == 2
    triggers = agent.of(run.id)
    assert len({each["event_id"] for each in triggers}) == 1
    assert len(triggers) == (1 if airflow_versions.STORE else 2)


@pytest.mark.parametrize("dag", ["retried", "retried_deferred"])
def test_retry_after_a_failure(agent: Agent, dags: Any, dag: str) -> None:
    """It triggers anew; before Airflow 3.3 it finds the same failure again."""
    run = Run(dags[dag], do="fail first")
    assert run.state == ("success" if airflow_versions.STORE else "failed")
    assert run.tasks()["ask", -1].try_number == 2
    first, second = agent.of(run.id)
    assert (first["event_id"] != second["event_id"]) is airflow_versions.STORE
    assert run.xcom(key="workflow_event")["correlation_id"] == second["event_id"]


def test_clear_triggers_anew(agent: Agent, dags: Any) -> None:
    run = Run(dags["worker"], do="succeed", workflow="review")
    run.clear()
    first, second = agent.of(run.id)
    assert first["event_id"] != second["event_id"]
    assert run.xcom(key="workflow_event")["correlation_id"] == second["event_id"]


def test_mapped_tasks_each_have_their_own(agent: Agent, dags: Any) -> None:
    run = Run(dags["mapped"])
    assert run.state == "success"
    assert [run.xcom(map_index=n) for n in range(3)] == [{"answer": n} for n in range(3)]
    assert len({each["event_id"] for each in agent.of(run.id)}) == 3


def test_large_result_stays_in_kafka(agent: Agent, dags: Any) -> None:
    run = Run(dags["large"], do="large")
    assert run.state == "success"
    (trigger,) = agent.of(run.id)
    reference = run.xcom()
    assert reference.keys() == {"topic", "partition", "offset", "correlation_id"}
    assert reference["correlation_id"] == trigger["event_id"]
    assert run.xcom("read") == 100_000


def test_broker_that_is_away(agent: Agent, dags: Any) -> None:
    run = Run(dags["broker_down"], do="succeed")
    assert run.state == "failed"
    assert type(errors[-1]).__name__ == "WorkflowNotTriggered"
    assert re.search(r"topic workflow-triggers of connection kafka_down: .*127\.0\.0\.1:1", str(errors[-1]))
    assert agent.of(run.id) == []


@pytest.mark.parametrize("dag", ["worker", "function_once"])
def test_task_that_is_told_to_end(agent: Agent, dags: Any, dag: str) -> None:
    """Airflow's own handler of SIGTERM calls on_kill, in the thread that waits, and does nothing else."""
    before = signal.getsignal(signal.SIGTERM)
    agent.on_wait = lambda trigger: Background(kill_once_it_waits, trigger["event_id"])
    try:
        run = Run(dags[dag], do="wait", workflow="review")
    finally:
        signal.signal(signal.SIGTERM, before)
        agent.on_wait = lambda trigger: None
    assert run.state == "failed"
    (trigger,) = agent.of(run.id)
    assert type(errors[-1]).__name__ == "WorkflowWaitKilled"
    assert trigger["event_id"] in str(errors[-1])
    eventually(lambda: trigger["event_id"] not in waiting(RESULTS))


def kill_once_it_waits(event_id: str) -> None:
    eventually(lambda: event_id in waiting(RESULTS))
    os.kill(os.getpid(), signal.SIGTERM)


def test_function_in_a_task(agent: Agent, dags: Any) -> None:
    run = Run(dags["function"], do="succeed")
    assert run.state == "success"
    assert run.xcom("twice") == ["equal", "equal"]
    first, second = agent.of(run.id)  # equal requests, two triggers
    assert first["event_id"] != second["event_id"]


def test_function_waits_for_the_same_triggers_in_a_retry(agent: Agent, dags: Any) -> None:
    """The first request times out and is answered then; the second one, of the second try, is answered at once."""
    run = Run(dags["function"], do="wait once")
    assert run.state == "success"
    assert run.tasks()["twice", -1].try_number == 2
    assert run.xcom("twice") == ["late", "equal"]
    triggers = agent.of(run.id)
    assert len({each["event_id"] for each in triggers}) == 2
    assert len(triggers) == (2 if airflow_versions.STORE else 3)


def test_function_outside_a_task(agent: Agent) -> None:
    from workflow_results.airflow import WorkflowTaskFailed, trigger_and_wait

    assert trigger_and_wait("review", {"do": "succeed", "ask": 1}, timeout=60).result == {"answer": 1}
    with pytest.raises(WorkflowTaskFailed, match="declined") as failed:
        trigger_and_wait("review", {"do": "fail"}, timeout=60)
    assert failed.value.result.result == {"reason": "declined"}


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferred"])
def test_sensor(agent: Agent, dags: Any, mode: str) -> None:
    run = Run(dags[f"sensor_{mode}"], do="succeed")
    assert run.state == "success"
    assert run.xcom("await") == {"answer": 7}


def test_rescheduled_sensor_always_begins_at_the_same_time(
    agent: Agent, dags: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result comes with the third look. What Airflow 3 takes for the first start is the end of the first look."""
    from workflow_results.airflow import WorkflowResultHook, sensor

    begins: list[datetime] = []
    wait = WorkflowResultHook.wait

    def noting(self: Any, *arguments: Any) -> Any:
        begins.append(arguments[-1])
        if len(begins) == 3:
            agent.release()
        return wait(self, *arguments)

    monkeypatch.setattr(WorkflowResultHook, "wait", noting)
    monkeypatch.setattr(sensor, "LOOK", 0.5)
    run = Run(dags["sensor_reschedule"], do="wait")
    assert run.state == "success"
    assert run.xcom("await") == {"answer": "late"}
    assert begins[1] == begins[2]


@pytest.mark.parametrize(("kind", "error"), [("deferred", "WorkflowTimedOut"), ("sensor", "AirflowSensorTimeout")])
def test_triggerer_that_says_nothing(agent: Agent, dags: Any, kind: str, error: str) -> None:
    """Airflow's scheduler gives the deferred task up, and resumes it to fail."""
    dag, task_id = (dags["deferred"], "ask") if kind == "deferred" else (dags["sensor_deferred"], "await")
    Run(dag, do="succeed").resume_unanswered(task_id)
    assert type(errors[-1]).__name__ == error
    assert "the triggerer told nothing" in str(errors[-1])


def test_sensor_of_a_failure_is_not_retried(agent: Agent, dags: Any) -> None:
    run = Run(dags["sensor_poke"], do="fail")
    assert run.state == "failed"
    assert type(errors[-1]).__name__ == "AirflowFailException"
    assert "declined by the reviewer" in str(errors[-1])


def test_sensor_timeout(agent: Agent, dags: Any) -> None:
    run = Run(dags["sensor_impatient"], do="wait")
    assert run.state == "failed"
    assert type(errors[-1]).__name__ == "AirflowSensorTimeout"
    assert "no result for correlation ID" in str(errors[-1])


@pytest.mark.parametrize(("dag", "do"), [("sensor_soft", "fail"), ("sensor_soft_deferred", "wait")])
def test_soft_sensor_skips(agent: Agent, dags: Any, dag: str, do: str) -> None:
    assert Run(dags[dag], do=do).tasks()["await", -1].state == "skipped"
