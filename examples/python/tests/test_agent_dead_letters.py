"""What is no trigger is put aside, with the reason, and holds nothing up."""

from __future__ import annotations

import json

from agent_world import World, eventually, world_fixture  # noqa: F401
from confluent_kafka import Message

from workflow_results.agent.dead_letter import PREFIX
from workflow_results.events import EventType, WorkflowEvent


def headers(record: Message) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in record.headers() or []}


def event(**more: object) -> bytes:
    made = WorkflowEvent(event_type=EventType.WORKFLOW_TRIGGERED, workflow_id="w", workflow_run_id="r", payload={})
    return json.dumps({**json.loads(made.to_json()), **more}).encode()


def test_invalid_triggers_are_put_aside_with_the_reason(world: World) -> None:
    values = {
        "Expecting": b"{no json",
        "event_id": event(event_id="7"),
        "unknown": event(unknown=1),
        'event_type is "workflow.result"': event(event_type="workflow.result"),
        "more than 2000": event(payload={"text": "x" * 3000}),
    }
    producer = world.kafka.producer()
    for value in values.values():
        producer.produce(world.triggers, value, b"\xffkey", 1, headers=[("traceparent", b"00-1"), ("blob", b"\xff")])
    producer.produce(world.triggers, None, None, 1)
    assert producer.flush(30) == 0
    good = world.trigger(partition=1)
    world.agent("graph", "--max-trigger-bytes", "2000")
    world.results(good)
    world.await_committed(7, partition=1)  # no commit is seen before the letters are there
    letters = world.read(world.dead_letters)
    assert [letter.value() for letter in letters] == [*values.values(), None]
    for offset, (letter, reason) in enumerate(zip(letters, [*values, "no value"], strict=True)):
        given = letter.headers() or []
        told = {str(name): (value or b"").decode() for name, value in given if str(name).startswith(PREFIX)}
        assert reason in told[PREFIX + "reason"]
        assert told[PREFIX + "group"] == world.group
        assert (told[PREFIX + "topic"], told[PREFIX + "partition"], told[PREFIX + "offset"]) == (
            world.triggers, "1", str(offset),
        )  # fmt: skip
        if letter.value() is not None:
            assert letter.key() == b"\xffkey"
            assert list(given)[:2] == [("traceparent", b"00-1"), ("blob", b"\xff")]


def test_not_committed_before_the_letter_is_there(world: World) -> None:
    world.kafka.delete_topic(world.dead_letters)
    agent = world.agent("graph", "--topic-partitions", "0")
    world.kafka.publish(world.triggers, ("k", b"no trigger"), partition=0)
    after = world.trigger()
    world.results(after)
    agent.await_log("could not be delivered", "offset=0")
    assert world.committed() <= 0
    world.kafka.create_topic(world.dead_letters)
    world.await_committed(2)
    agent.await_log("the dead letter is delivered now", "offset=0")
    assert [letter.value() for letter in world.read(world.dead_letters)] == [b"no trigger"]


def test_a_letter_too_large_for_its_topic_goes_without_the_value(world: World) -> None:
    world.kafka.delete_topic(world.dead_letters)
    eventually(lambda: world.dead_letters not in world.kafka.admin.list_topics(timeout=30).topics)
    world.create_dead_letters({"max.message.bytes": "2000"})
    world.agent()
    world.kafka.publish(world.triggers, ("k", b"x" * 5000), partition=0)
    world.await_committed(1)
    letter = world.read(world.dead_letters)[0]
    assert letter.value() is None
    assert headers(letter)[PREFIX + "value-left-out"] == "5000"
    assert headers(letter)[PREFIX + "offset"] == "0"
