"""What is committed, and when: never a trigger that has no answer."""

from __future__ import annotations

import time

from agent_world import QUICK, World, eventually, release, world_fixture  # noqa: F401

from workflow_results.agent.offsets import PartitionOffsets


def test_only_the_prefix_is_committable() -> None:
    offsets = PartitionOffsets()
    assert offsets.committable is None
    for offset in (3, 4, 7):  # 5 and 6 are markers of transactions
        offsets.begin(offset)
    offsets.done(4)
    offsets.done(7)
    assert offsets.committable == 3
    offsets.begin(8)
    offsets.done(3)
    assert offsets.committable == 8
    offsets.done(8)
    assert offsets.committable == 9


def test_only_what_lies_before_all_that_is_open_begins_anew() -> None:
    offsets = PartitionOffsets()
    assert not offsets.begins_anew(3)
    offsets.begin(3)
    offsets.begin(4)
    assert [offsets.begins_anew(offset) for offset in (0, 3, 4, 5)] == [True, True, False, False]
    offsets.done(3)
    offsets.done(4)
    assert [offsets.begins_anew(offset) for offset in (4, 5)] == [True, False]


def test_runs_that_end_out_of_order_are_committed_in_order(world: World) -> None:
    agent, gate = world.agent(kafka=QUICK), world.gate()
    first = world.trigger(do="gate", gate=gate)
    later = [world.trigger(n=n) for n in range(3)]
    elsewhere = world.trigger(partition=1)
    world.results(*later, elsewhere)
    world.await_committed(1, partition=1)  # commits go on, but for the first trigger's partition
    assert world.committed() <= 0
    agent.kill()
    world.agent()  # the first is run again, the later ones are not
    release(gate)
    world.results(first, *later)
    world.await_committed(4)
    assert world.runs(first) == 2
    assert [world.runs(each) for each in later] == [1, 1, 1]


def test_killed_in_mid_run_each_trigger_has_one_result(world: World) -> None:
    gates = [world.gate() for _ in range(3)]
    held = [world.trigger(partition=n % 2, do="gate", gate=gate) for n, gate in enumerate(gates)]
    quick = [world.trigger(partition=n % 2, n=n) for n in range(9)]
    first = world.agent(kafka=QUICK)
    first.await_log("the run begins", count=4)
    first.kill()
    second = world.agent(kafka=QUICK)
    second.await_log("the run begins", count=3)  # all others may have had their turn
    second.kill()
    world.agent()
    for gate in gates:
        release(gate)
    found = world.results(*held, *quick)
    assert found.keys() == {*held, *quick}
    assert {each["status"] for each in found.values()} == {"success"}
    world.await_committed(7)
    world.await_committed(5, partition=1)


def test_a_trigger_that_is_read_twice_runs_once(world: World) -> None:
    agent, gate = world.agent(), world.gate()
    event_id = world.trigger(do="gate", gate=gate)
    agent.await_log("the run begins")
    value = world.read(world.triggers)[0].value()
    assert value is not None
    world.kafka.publish(world.triggers, (event_id, value), (event_id, value), partition=1)
    after = world.trigger(partition=1)
    world.results(after)
    release(gate)
    world.results(event_id)
    world.await_committed(3, partition=1)
    assert world.runs(event_id) == 1


def test_a_graph_slower_than_the_poll_interval_keeps_its_partition(world: World) -> None:
    limits = {"max.poll.interval.ms": 6000, "session.timeout.ms": 6000}
    agent = world.agent("graph", "--concurrency", "1", kafka=limits)
    slow = world.trigger(do="sleep", seconds=9)
    after = world.trigger()
    began = time.monotonic()
    world.results(slow, after)
    assert time.monotonic() - began > 9
    world.await_committed(2)
    assert world.runs(slow) == world.runs(after) == 1
    assert not any("revoked" in line or "lost" in line or "trouble" in line for line in agent.lines)


def test_no_more_runs_at_once_than_told(world: World) -> None:
    agent, gates = world.agent("graph", "--concurrency", "2"), [world.gate() for _ in range(6)]
    sent = [world.trigger(partition=n % 2, do="gate", gate=gate) for n, gate in enumerate(gates)]
    for n in range(len(sent)):
        agent.await_log("the run begins", count=min(n + 2, 6))
        settled = sum("the run is settled" in line for line in agent.lines)
        assert sum("the run begins" in line for line in agent.lines) <= settled + 2
        begun = [line.split("correlation_id=")[1].split()[0] for line in agent.await_log("the run begins")]
        release(gates[sent.index(begun[n])])  # each once: the one before may not be settled yet
    world.results(*sent)
    assert [world.runs(each) for each in sent] == [1] * 6


def test_two_agents_share_and_lose_nothing(world: World) -> None:
    first, gate = world.agent("graph", "--concurrency", "2"), world.gate()
    first.await_log("partitions assigned")
    held = world.trigger(partition=0, do="gate", gate=gate)
    sent = [world.trigger(partition=n % 2, do="sleep", seconds=0.2) for n in range(20)]
    first.await_log("the run is settled")
    second = world.agent("graph", "--concurrency", "2", "--shutdown-timeout", "0.5")
    first.await_log("partitions revoked")
    second.await_log("partitions assigned", "triggers-")
    second.await_log("the run begins")
    second.process.terminate()
    assert second.wait() == 0
    release(gate)
    found = world.results(held, *sent)
    assert found.keys() == {held, *sent}
    world.await_committed(11)
    world.await_committed(10, partition=1)


def test_a_topic_of_triggers_that_is_made_anew(world: World) -> None:
    """Its offsets begin again: those of the runs that go on mean nothing in it."""
    agent = world.agent()
    old, new = world.gate(), world.gate()
    before = [world.trigger(do="gate", gate=old), world.trigger()]
    world.results(before[1])
    world.kafka.delete_topic(world.triggers)
    eventually(lambda: world.triggers not in world.kafka.admin.list_topics(timeout=30).topics)
    world.kafka.create_topic(world.triggers, 2)
    held = world.trigger(do="gate", gate=new)
    world.await_run(held, "work")
    release(old)
    world.results(before[0])
    agent.await_log("the run is settled", before[0])
    world.results(world.trigger())
    assert world.committed() <= 0  # of the new topic: its first trigger still runs
    release(new)
    world.results(held)
    world.await_committed(2)
    assert agent.process.poll() is None
