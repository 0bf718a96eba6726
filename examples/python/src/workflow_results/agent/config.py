"""What the agent is told: flags, environment variables, and the file for librdkafka."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from workflow_results.agent.graphs import Mode

PREFIX = "WORKFLOW_RESULTS_AGENT_"
NOTHING: Any = object()  # null is a value
DEFAULT_SOCKET = "/run/workflow-results/sidecar.sock"

# What the promises rest on, or what has a flag of its own.
_OURS = {
    "bootstrap.servers": "--brokers",
    "metadata.broker.list": "--brokers",
    "group.id": "--group-id",
    "isolation.level": None,
    "enable.auto.commit": None,
    "enable.auto.offset.store": None,
    "enable.partition.eof": None,
    "enable.idempotence": None,
    "acks": None,
}

_RUN_EXAMPLE = """\
example:
  python -m workflow_results.agent run shop.review:graph --brokers 127.0.0.1:9092 --workflow-id order-review

Each flag has an environment variable: WORKFLOW_RESULTS_AGENT_GROUP_ID for --group-id, WORKFLOW_RESULTS_AGENT_GRAPH
for the graph. A list is separated by commas there.

SIGTERM: it takes no more triggers, waits for those that run, commits and leaves the group. A second signal ends it at
once. Exit status: 0 stopped; 1 it cannot go on, or could not leave the group in time; 2 a flag is wrong.
"""

_RESUME_EXAMPLE = """\
example:
  python -m workflow_results.agent resume shop.review:graph --correlation-id 0192f0c1-2b7e-7c3a-9d54-5f2a1b6c7d8e \\
      --value '{"approved": true}'

It prints one line of JSON. Exit status: 0 a result is published, or the run is interrupted again; 1 it could not be
resumed; 2 a flag is wrong.
"""


@dataclass(frozen=True)
class Config:
    """How the agent runs."""

    graph: str
    mode: Mode
    brokers: str
    socket: str
    triggers_topic: str
    dead_letter_topic: str
    group_id: str
    workflow_ids: frozenset[str]
    topic_partitions: int  # 0: the agent makes no topics
    topic_replication_factor: int
    concurrency: int
    max_trigger_bytes: int
    shutdown_timeout: float  # seconds
    log_level: str
    log_format: str
    kafka: dict[str, Any] = field(default_factory=dict, repr=False)  # it may hold passwords


@dataclass(frozen=True)
class ResumeConfig:
    """What is to be resumed."""

    graph: str
    mode: Mode
    socket: str
    correlation_id: str
    value: Any  # NOTHING: go on without one
    interrupt_id: str | None
    workflow_id: str | None
    workflow_run_id: str | None
    log_level: str
    log_format: str


def parse(args: list[str] | None = None) -> Config | ResumeConfig:
    """Read the command line and the environment; a bad value ends the process with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow_results.agent",
        description="Runs a LangGraph graph for each trigger in Kafka, and hands the results to the sidecar.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = _Command(commands, "run", "Take triggers and answer them.", _RUN_EXAMPLE)
    _run_flags(run)
    resume = _Command(commands, "resume", "Go on with a run that was interrupted, and publish its result.",
                      _RESUME_EXAMPLE)  # fmt: skip
    _resume_flags(resume)
    given = parser.parse_args(args)
    fields = {name: value for name, value in vars(given).items() if name != "command"}
    if given.command == "resume":
        return ResumeConfig(**fields)
    fields["workflow_ids"] = frozenset(fields["workflow_ids"])
    fields["kafka"] = fields["kafka"] or {}
    # Two agents of different workflows in one group would leave out each other's triggers.
    fields["group_id"] = fields["group_id"] or ".".join(["workflow-agent", *sorted(fields["workflow_ids"])])
    return Config(**fields)


class _Command:
    """A subcommand whose flags can come from the environment."""

    def __init__(self, commands: Any, name: str, about: str, epilog: str) -> None:
        self._parser: argparse.ArgumentParser = commands.add_parser(
            name, help=about, description=about, epilog=epilog, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        given = _environment("GRAPH", None)
        self._parser.add_argument(
            "graph", nargs="?" if given else None, default=given, metavar="module:graph",
            help="a compiled graph, or a function without arguments that makes one (async too)",
        )  # fmt: skip
        self.flag("--mode", "where the graph runs: threads (invoke), loop (ainvoke); auto: loop if it has nodes that "
                  "can only be awaited, or is made by an async function", "auto", _one_of("auto", "threads", "loop"),
                  metavar="MODE")  # fmt: skip
        self.flag("--socket", "the sidecar's socket", DEFAULT_SOCKET, _text)
        self.flag("--log-level", "debug, info, warning or error", "info", _one_of("debug", "info", "warning", "error"),
                  metavar="LEVEL")  # fmt: skip
        self.flag("--log-format", "text or json", "text", _one_of("text", "json"), metavar="FORMAT")

    def flag(
        self, name: str, about: str, default: Any, kind: Callable[[str], Any], *, required: bool = False,
        dest: str | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Add a flag; argparse gives the default, too, to ``kind`` when it is a str."""
        default = _environment(name.removeprefix("--").upper().replace("-", "_"), default)
        shown = f"{about} (default: {default})" if isinstance(default, str) else about
        self._parser.add_argument(
            name, help=shown.replace("%", "%%"), default=default, type=kind,
            required=required and default is None, dest=dest or name.removeprefix("--").replace("-", "_"), **more,
        )  # fmt: skip

    def repeated(self, name: str, about: str, dest: str) -> None:
        """Add a flag that may be given more than once; those of the environment count if none is given."""
        given = _environment(name.removeprefix("--").upper().replace("-", "_"), None)
        default = [each.strip() for each in given.split(",") if each.strip()] if given else []
        self._parser.add_argument(
            name, help=about, dest=dest, metavar="ID", type=_text, action=_Replace, default=default
        )  # fmt: skip


class _Replace(argparse.Action):
    """Appends to what was given on the command line, not to the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [values] if before is self.default else [*before, values])


def _run_flags(run: _Command) -> None:
    run.flag("--brokers", "Kafka, as host:port,host:port", None, _text, required=True)
    run.flag("--triggers-topic", "where triggers come from", "workflow-triggers", _text, metavar="TOPIC")
    run.flag("--dead-letter-topic", "where invalid triggers go", "workflow-triggers-dlq", _text, metavar="TOPIC")
    run.flag("--topic-partitions", "partitions of these two topics, where the agent makes them; 0: it makes none", "6",
             _integer(0, 100_000), metavar="N")  # fmt: skip
    run.flag("--topic-replication-factor", "replication factor, where it makes them; -1 is the brokers' default", "-1",
             _integer(-1, 1000), metavar="N")  # fmt: skip
    run.flag("--group-id", "the consumer group; workflow-agent.WORKFLOW_ID if left out", None, _text)
    run.repeated("--workflow-id", "take the triggers of this workflow only; may be repeated", "workflow_ids")
    run.flag("--concurrency", "graphs that run at once", "4", _integer(1, 1024), metavar="N")
    run.flag("--max-trigger-bytes", "a larger trigger is invalid", str(1 << 20), _integer(1, 1 << 30), metavar="N")
    run.flag("--shutdown-timeout", "seconds to wait for graphs that run, on SIGTERM", "25", _seconds, metavar="SECONDS")
    run.flag("--kafka-config", "JSON file with settings of librdkafka, such as security.protocol", None, _kafka_file,
             dest="kafka", metavar="FILE")  # fmt: skip


def _resume_flags(resume: _Command) -> None:
    resume.flag("--correlation-id", "the event ID of the trigger", None, _uuid, required=True)
    resume.flag("--value", "what the interrupt returns, as JSON; leave it out at a breakpoint", NOTHING, _json)
    resume.flag("--interrupt-id", "which interrupt, where several wait", None, _text)
    resume.flag("--workflow-id", "which workflow; the checkpoint tells if left out", None, _text)
    resume.flag("--workflow-run-id", "which run; the checkpoint tells if left out", None, _text)


def _environment(name: str, default: Any) -> Any:
    return os.environ.get(PREFIX + name) or default


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return value


def _uuid(value: str) -> str:
    try:
        return str(UUID(value))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{value!r} is no UUID; the agent's log names it as correlation_id") from e


def _one_of(*allowed: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"{value!r} is none of {', '.join(allowed)}")
        return value

    return check


def _integer(low: int, high: int) -> Callable[[str], int]:
    def check(value: str) -> int:
        if not re.fullmatch("-?[0-9]{1,18}", value) or not low <= int(value) <= high:
            raise argparse.ArgumentTypeError(f"{value!r} is no whole number from {low} to {high}")
        return int(value)

    return check


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of seconds from 0 to 86400")
    return seconds


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"no JSON: {e}") from e


def _kafka_file(path: str) -> dict[str, Any]:
    """Read settings of librdkafka; those that the promises rest on cannot be changed."""
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
    except (OSError, ValueError) as e:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {e}") from e
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"{path} must hold one JSON object")
    for name in settings.keys() & _OURS.keys():
        raise argparse.ArgumentTypeError(f"{path}: {name} cannot be set{f'; use {_OURS[name]}' if _OURS[name] else ''}")
    return settings
