"""Running graphs beside the consumer, so that it can go on polling for as long as they take."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from workflow_results.agent import graphs
from workflow_results.agent.answer import Answering, Settlement
from workflow_results.agent.logs import say, where
from workflow_results.agent.patience import PatientSidecarClient
from workflow_results.events import WorkflowEvent

Key = tuple[str, str]  # the trigger's event ID and its workflow's

_NODE_THREADS = 32  # for nodes that block within graphs that are awaited


class Runner:
    """An event loop in a thread of its own, and the threads for graphs that block.

    All methods are for one thread, the consumer's. How runs end comes back
    through ``ended``, in the order in which they end.
    """

    def __init__(self, concurrency: int) -> None:
        """Start the loop; no graph is loaded yet."""
        self.ended: queue.SimpleQueue[tuple[Key, Future[Settlement]]] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(concurrency, "graph")
        self._turns = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_NODE_THREADS, "node"))
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="graphs", daemon=True)
        self._thread.start()

    def load(self, path: str, mode: graphs.Mode, sidecar: PatientSidecarClient) -> tuple[str, str]:
        """Load the graph; returns where it runs, and its checkpointer's type.

        Raises:
            graphs.GraphNotFound: there is no graph under this name.
        """
        graph = asyncio.run_coroutine_threadsafe(graphs.load(path, mode, self._pool), self._loop).result()
        self._answering = Answering(graph, sidecar)
        kind = type(graph.checkpointer).__name__ if self._answering.checkpointed else "none"
        return ("threads" if isinstance(graph, graphs.InThreads) else "loop"), kind

    def start(self, event: WorkflowEvent) -> None:
        """Begin a trigger's run. The caller keeps to the concurrency; one too many waits for its turn."""
        key = key_of(event)
        future = asyncio.run_coroutine_threadsafe(self._settle(event), self._loop)
        future.add_done_callback(lambda done: self.ended.put((key, done)))

    def close(self) -> None:
        """End the loop and its threads. Only when nothing runs any more: a thread cannot be stopped."""
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._pool.shutdown()

    async def _settle(self, event: WorkflowEvent) -> Settlement:
        async with self._turns:
            return await self._answering.settle(event)

    def _serve(self) -> None:
        while not self._closing:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as e:
                # asyncio lets these two through when a task of a graph raises them. The run has its answer from the
                # task; the loop is whole and goes on with the others.
                say(logging.WARNING, "a graph tried to end the process", error=where(e))


def key_of(event: WorkflowEvent) -> Key:
    """Return what two records of the same trigger have in common."""
    return str(event.event_id), event.workflow_id
