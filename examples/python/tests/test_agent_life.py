"""Starting, stopping, and what goes away meanwhile."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import pytest
from agent_world import Agent, PromptKafka, World, release, world_fixture  # noqa: F401
from confluent_kafka.admin import AclOperation, ResourceType
from kafka import PASSWORD


def test_stops_when_its_runs_have_ended(world: World) -> None:
    agent, gate = world.agent("graph", "--concurrency", "1"), world.gate()
    running = world.trigger(do="gate", gate=gate)
    agent.await_log("the run begins")
    waiting = world.trigger()
    agent.process.terminate()
    agent.await_log("stopping", "running=1")
    release(gate)
    assert agent.wait() == 0
    agent.await_log("the agent has ended", "left_behind=0")
    assert world.results(running).keys() == {running}
    assert world.committed() == 1
    assert world.runs(waiting) == 0


def test_stops_in_time_though_a_run_goes_on(world: World) -> None:
    agent, gate = world.agent("graph", "--shutdown-timeout", "0.5"), world.gate()
    running = world.trigger(do="gate", gate=gate)
    agent.await_log("the run begins")
    quick = world.trigger(partition=1)
    world.results(quick)
    agent.process.terminate()
    assert agent.wait() == 0
    agent.await_log("left behind", running)
    assert world.committed() <= 0
    assert world.committed(partition=1) == 1
    world.agent()
    release(gate)
    world.results(running)  # the group was left: nobody waits for a session to time out
    world.await_committed(1)


def test_second_signal_ends_it_at_once(world: World) -> None:
    agent = world.agent()
    running = world.trigger(do="gate", gate=world.gate())
    agent.await_log("the run begins")
    agent.process.send_signal(signal.SIGINT)
    agent.await_log("stopping", "running=1")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.wait(10) == 128 + signal.SIGTERM
    assert world.runs(running) == 1


def test_sidecar_away_during_a_run(world: World) -> None:
    agent, gate = world.agent(), world.gate()
    running = world.trigger(do="gate", gate=gate)
    agent.await_log("the run begins")
    world.stop_sidecar()
    release(gate)
    later = world.trigger()
    agent.await_log("the sidecar does not answer")
    assert world.committed() <= 0
    world.start_sidecar()
    agent.await_log("the sidecar answers again")
    world.results(running, later)
    world.await_committed(2)
    assert world.runs(running) == world.runs(later) == 1


def test_kafka_away_during_a_run() -> None:
    kafka = PromptKafka()
    with tempfile.TemporaryDirectory(prefix="wr") as directory:
        world = World(kafka, Path(directory))
        try:
            world.start_sidecar()
            agent, gate = world.agent("graph", "--shutdown-timeout", "0.5"), world.gate()
            running = world.trigger(do="gate", gate=gate)
            agent.await_log("the run begins")
            kafka.stop()
            release(gate)
            agent.await_log("the run is settled")
            agent.await_log("trouble with Kafka")
            kafka.start()
            later = world.trigger()
            world.results(running, later)
            world.await_committed(2)
            assert world.runs(running) == 1
            kafka.stop()
            agent.process.terminate()
            assert agent.wait(15) == 1  # and not when librdkafka gives up
            agent.await_log("the group could not be left in time")
        finally:
            world.close()
            kafka.close()


def test_shut_out_for_good_it_ends(world: World) -> None:
    first = world.agent(kafka={"group.instance.id": "one"})
    first.await_log("partitions assigned")
    world.agent(kafka={"group.instance.id": "one"})
    assert first.wait() == 1
    first.await_log("cannot go on", "Static consumer fenced")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["agent_graphs:graph"], "--brokers"),
        (["agent_graphs:graph", "--broker", "b:1"], "--brokers"),
        (["agent_graphs:graph", "--brokers", "b:1", "--topic-replication-factor", "-2"], "from -1 to 1000"),
        (["agent_graphs:graph", "--brokers", "b:1", "--concurrency", "0"], "whole number from 1 to 1024"),
        (["agent_graphs:graph", "--brokers", "b:1", "--shutdown-timeout", "soon"], "number of seconds"),
        (["agent_graphs:graph", "--brokers", "b:1", "--kafka-config", "/nowhere.json"], "cannot read /nowhere.json"),
        (["agent_graphs:graph", "--brokers", "b:1", "--mode", "fast"], "none of auto, threads, loop"),
        (["agent_graphs:graph", "--brokers", "b:1", "--socket", "/" + "s" * 200], "--socket"),
        (["agent_graphs", "--brokers", "b:1"], "must be module:attribute"),
        (["no_such_module:graph", "--brokers", "b:1"], "no module 'no_such_module'"),
        (["agent_graphs:none", "--brokers", "b:1"], "has no 'none'"),
        (["agent_graphs:work", "--brokers", "b:1", "--mode", "loop"], "TypeError"),
    ],
)
def test_wrong_flags_are_told(world: World, args: list[str], says: str) -> None:
    agent = Agent(args, world.env)
    assert agent.wait() == (1 if says == "TypeError" else 2)
    agent.await_log(says)


def test_kafka_config_cannot_undo_the_promises(world: World) -> None:
    for name in ("enable.auto.commit", "isolation.level", "group.id"):
        path = world.directory / "config.json"
        path.write_text(json.dumps({name: "x"}))
        agent = Agent(["agent_graphs:graph", "--brokers", "b:1", "--kafka-config", str(path)], world.env)
        assert agent.wait() == 2
        agent.await_log(f"{name} cannot be set")
    path.write_text(json.dumps({"no.such.setting": 1}))
    agent = Agent(["agent_graphs:graph", "--brokers", "b:1", "--kafka-config", str(path)], world.env)
    assert agent.wait() == 2
    agent.await_log("the Kafka configuration is wrong", "no.such.setting")


def test_all_of_it_from_the_environment(world: World) -> None:
    prefix = "WORKFLOW_RESULTS_AGENT_"
    settings = {
        "GRAPH": "agent_graphs:graph", "BROKERS": world.kafka.addr, "SOCKET": world.socket,
        "TRIGGERS_TOPIC": world.triggers, "DEAD_LETTER_TOPIC": world.dead_letters, "WORKFLOW_ID": "v, w",
        "CONCURRENCY": "2", "LOG_FORMAT": "json",
    }  # fmt: skip
    agent = Agent([], world.env | {prefix + name: value for name, value in settings.items()})
    world.agents.append(agent)
    told = json.loads(agent.await_log("the agent starts")[0])
    assert told["group"] == "workflow-agent.v.w"
    assert told["concurrency"] == 2
    event_id = world.trigger()
    world.results(event_id)


def test_it_makes_the_topics_of_the_triggers(world: World) -> None:
    topics = [world.triggers, world.dead_letters] = [f"new-{uuid4()}", f"new-{uuid4()}"]
    agent = world.agent("graph", "--topic-partitions", "3")
    for each in topics:
        agent.await_log("topic made", each)
    found = world.kafka.admin.list_topics(timeout=30).topics
    assert [len(found[each].partitions) for each in topics] == [3, 3]
    event_id = world.trigger(n=3, partition=2)
    assert world.results(event_id)[event_id]["result"]["answer"] == 3


def test_topics_that_it_may_not_make_are_told(world: World) -> None:
    world.triggers = f"new-{uuid4()}"
    agent = world.agent("graph", "--topic-replication-factor", "3")  # there is one broker
    agent.await_log("could not be made", world.triggers, "replication factor")
    world.kafka.create_topic(world.triggers)
    event_id = world.trigger(n=3)
    assert world.results(event_id)[event_id]["result"]["answer"] == 3


def test_three_rights_are_all_that_it_needs(world: World) -> None:
    """The right to make topics is missed, and told; the topics are there."""
    for kind, name, operation in [
        (ResourceType.TOPIC, world.triggers, AclOperation.READ),
        (ResourceType.GROUP, world.group, AclOperation.READ),
        (ResourceType.TOPIC, world.dead_letters, AclOperation.WRITE),
    ]:
        world.kafka.allow("waiter", kind, name, operation)
    login = {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
        "sasl.username": "waiter", "sasl.password": PASSWORD,
    }  # fmt: skip
    agent = world.agent("graph", "--brokers", world.kafka.secure_addr, kafka=login)
    agent.await_log("could not be made", world.triggers, "uthorization")
    world.kafka.publish(world.triggers, ("k", b"no trigger"), partition=0)
    event_id = world.trigger(n=3)
    assert world.results(event_id)[event_id]["result"]["answer"] == 3
    world.await_committed(2)
    assert [letter.value() for letter in world.read(world.dead_letters)] == [b"no trigger"]
    assert not any(PASSWORD in line for line in agent.lines)


def test_idle_it_stops_at_once(world: World) -> None:
    agent = world.agent()
    agent.await_log("partitions assigned")
    began = time.monotonic()
    agent.process.terminate()
    assert agent.wait() == 0
    assert time.monotonic() - began < 5
