"""``python -m workflow_results.agent``: run, and resume."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import FrameType

from confluent_kafka import KafkaException

from workflow_results.agent import graphs, logs
from workflow_results.agent.config import Config, ResumeConfig, parse
from workflow_results.agent.consumer import Agent
from workflow_results.agent.logs import say
from workflow_results.agent.patience import PatientSidecarClient
from workflow_results.agent.resume import CannotResume, Resumed, resume
from workflow_results.agent.runner import Runner
from workflow_results.errors import SidecarError

LEAVE_TIMEOUT = 4.0  # seconds beyond --shutdown-timeout in which the group must be left

_FORGETFUL = ("InMemorySaver", "MemorySaver")


def main(args: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    config = parse(args)
    logs.configure(config.log_level, config.log_format == "json")
    sys.path.insert(0, os.getcwd())  # graphs are found beside where it is started, as with python -m
    try:
        return _run(config) if isinstance(config, Config) else _resume(config)
    except graphs.GraphNotFound as e:
        say(logging.ERROR, f"no graph: {e}")
        return 2


def _run(config: Config) -> int:
    try:
        sidecar = PatientSidecarClient(config.socket)
    except ValueError as e:
        say(logging.ERROR, f"--socket: {e}")
        return 2
    runner = Runner(config.concurrency)
    where, checkpointer = runner.load(config.graph, config.mode, sidecar)
    try:
        agent = Agent(config, runner)
    except (KafkaException, ValueError) as e:  # a setting that librdkafka does not know
        say(logging.ERROR, f"the Kafka configuration is wrong: {e}")
        return 2
    _end_on_signals(agent, config.shutdown_timeout)
    say(logging.INFO, "the agent starts", graph=config.graph, mode=where, checkpointer=checkpointer,
        brokers=config.brokers, triggers=config.triggers_topic, group=config.group_id,
        dead_letters=config.dead_letter_topic, workflows=",".join(sorted(config.workflow_ids)) or "all",
        concurrency=config.concurrency, socket=config.socket, pid=os.getpid())  # fmt: skip
    if checkpointer in _FORGETFUL:
        say(logging.WARNING, "the checkpointer forgets with this process: a run that is interrupted is lost then")
    try:
        left = agent.run()
    except KafkaException as e:
        say(logging.ERROR, "the agent cannot go on: Kafka shuts it out", cause=e.args[0].str())
        _end_now(1)
    except SidecarError as e:
        say(logging.ERROR, "the agent cannot go on: the sidecar refuses to tell what is answered", cause=e)
        _end_now(1)
    say(logging.INFO, "the agent has ended", left_behind=left)
    if left:
        _end_now(0)  # their threads cannot be stopped
    runner.close()
    return 0


def _end_on_signals(agent: Agent, shutdown_timeout: float) -> None:
    """Let the first signal stop it, the second one end it; and see to it that the first is enough."""
    signalled = False

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            _end_now(128 + number)
        signalled = True
        agent.stop()
        late = threading.Timer(shutdown_timeout + LEAVE_TIMEOUT, _late)
        late.daemon = True
        late.start()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def _late() -> None:
    """Kafka does not answer, and closing waits for it. What is not committed is read again, and not run again."""
    say(logging.ERROR, "the group could not be left in time; the agent ends without")
    _end_now(1)


def _end_now(status: int) -> None:
    """End without waiting for graphs: nothing is committed that is not done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _resume(config: ResumeConfig) -> int:
    try:
        resumed = asyncio.run(_resumed(config))
    except (CannotResume, SidecarError) as e:
        say(logging.ERROR, f"not resumed: {e}", correlation_id=config.correlation_id)
        return 1
    print(json.dumps(asdict(resumed)))
    return 0


async def _resumed(config: ResumeConfig) -> Resumed:
    with ThreadPoolExecutor(1, "graph") as pool:
        # It asks for a few seconds before anything runs; what has run is offered until the sidecar takes it.
        async with PatientSidecarClient(config.socket) as sidecar:
            graph = await graphs.load(config.graph, config.mode, pool)
            return await resume(
                graph, sidecar, config.correlation_id, config.value, interrupt_id=config.interrupt_id,
                workflow_id=config.workflow_id, workflow_run_id=config.workflow_run_id,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
