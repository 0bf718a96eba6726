"""Graphs for the tests of the agent: what they do is said by the trigger's payload."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

from workflow_results.langgraph import WorkflowFailure


class Stop(BaseException):
    """No Exception, and none of those that end a process."""


class State(TypedDict, total=False):
    do: str
    n: int
    gate: str  # a FIFO: the run waits until somebody writes to it
    seconds: float
    answer: Any


def note(config: RunnableConfig, what: str) -> None:
    """Append a line to the file of runs; short appends are atomic."""
    with open(os.environ["RUNS"], "a") as file:
        file.write(f"{what} {config['configurable'].get('thread_id')}\n")


def begin(state: State, config: RunnableConfig) -> State:
    note(config, "begin")
    return {}


def work(state: State, config: RunnableConfig) -> State:
    note(config, "work")
    match state.get("do"):
        case "fail":
            raise WorkflowFailure("no such order", {"n": state.get("n")})
        case "break":
            raise ValueError("secret-of-the-payload")
        case "exit":
            sys.exit(7)
        case "stop":
            raise Stop
        case "interrupt":
            return {"answer": interrupt("may it pass?")}
        case "gate":
            Path(state["gate"]).read_text()
        case "sleep":
            time.sleep(state["seconds"])  # it stands for work; nothing waits for it
        case "unwritable":
            return {"answer": object()}
    return {"answer": state.get("n")}


async def awork(state: State, config: RunnableConfig) -> State:
    if state.get("do") == "exit":
        note(config, "work")
        sys.exit(7)
    if state.get("do") == "stop":
        raise Stop
    if state.get("do") == "interrupt":
        return {"answer": interrupt("may it pass?")}
    return await asyncio.to_thread(work, state, config)


def build(node: Any, checkpointer: Any = None, **options: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("begin", begin)
    graph.add_node("work", node)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "work")
    graph.add_edge("work", END)
    return graph.compile(checkpointer=checkpointer, **options)


class FileSaver(InMemorySaver):
    """Checkpoints that outlive the process, in one file that is replaced at once."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self._lock = threading.Lock()  # LangGraph stores from threads of its own
        if self._path.exists():
            storage, writes, blobs = pickle.loads(self._path.read_bytes())
            for thread, spaces in storage.items():
                for space, checkpoints in spaces.items():
                    self.storage[thread][space].update(checkpoints)
            self.writes.update(writes)
            self.blobs.update(blobs)

    def put(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            done = super().put(*args, **kwargs)
            self._store()
        return done

    def put_writes(self, *args: Any, **kwargs: Any) -> None:
        with self._lock:
            super().put_writes(*args, **kwargs)
            self._store()

    def _store(self) -> None:
        storage = {t: {s: dict(c) for s, c in spaces.items()} for t, spaces in self.storage.items()}
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        fresh.write_bytes(pickle.dumps((storage, {k: dict(v) for k, v in self.writes.items()}, dict(self.blobs))))
        fresh.rename(self._path)


graph = build(work)
agraph = build(awork)


async def made_in_loop() -> Any:
    return build(work, InMemorySaver())


def durable() -> Any:
    return build(work, FileSaver(os.environ["CHECKPOINTS"]))


def breakpoint_before_work() -> Any:
    return build(work, FileSaver(os.environ["CHECKPOINTS"]), interrupt_before=["work"])
