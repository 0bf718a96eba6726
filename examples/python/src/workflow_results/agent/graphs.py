"""Finding the graph that is to be run, and giving graphs of both kinds the one asynchronous face."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

Mode = Literal["auto", "threads", "loop"]


class GraphNotFound(Exception):
    """There is no graph under this name; the text says what to change."""


class InThreads:
    """A graph that is invoked in threads, for whoever awaits it.

    Graphs whose nodes or checkpointer block belong here; those that await run in the loop itself.
    """

    def __init__(self, graph: Any, pool: ThreadPoolExecutor) -> None:
        """Take a compiled graph, and the threads to run it in."""
        self._graph = graph
        self._pool = pool
        self.checkpointer = getattr(graph, "checkpointer", None)
        self.interrupt_before_nodes = getattr(graph, "interrupt_before_nodes", [])
        self.interrupt_after_nodes = getattr(graph, "interrupt_after_nodes", [])

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        """Invoke it in a thread."""
        return await self._call(self._graph.invoke, input, config, **kwargs)

    async def aget_state(self, config: Any, **kwargs: Any) -> Any:
        """Ask for a thread's state, in a thread."""
        return await self._call(self._graph.get_state, config, **kwargs)

    async def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))


def find(path: str) -> Any:
    """Import what ``module:attribute`` names.

    Raises:
        GraphNotFound: there is no such module or attribute.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise GraphNotFound(f"{path!r} must be module:attribute, such as shop.review:graph")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not (module_name + ".").startswith(e.name + "."):
            raise  # something that the module itself imports
        raise GraphNotFound(f"no module {e.name!r}: is its directory in PYTHONPATH?") from e
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise GraphNotFound(f"{module_name} has no {attribute!r}")
        found = getattr(found, part)
    return found


async def load(path: str, mode: Mode, pool: ThreadPoolExecutor) -> Any:
    """Find the graph, make it if it has to be made, and decide where it runs.

    It is awaited in the loop that it will run in: an asynchronous checkpointer is bound to it.

    Raises:
        GraphNotFound: there is no graph under this name.
    """
    found = find(path)
    graph = found if hasattr(found, "invoke") or not callable(found) else found()
    if made_in_loop := inspect.isawaitable(graph):
        graph = await graph
    if not callable(getattr(graph, "ainvoke", None)):
        hint = "; call .compile()" if callable(getattr(graph, "compile", None)) else ""
        raise GraphNotFound(f"{path} is a {type(graph).__name__}, no compiled graph{hint}")
    if mode == "loop" or (mode == "auto" and (made_in_loop or _awaits(graph))):
        return graph
    return InThreads(graph, pool)


def _awaits(graph: Any) -> bool:
    """Tell whether any of its nodes can only be awaited."""
    for node in getattr(graph, "nodes", {}).values():
        bound = getattr(node, "bound", node)
        if getattr(bound, "func", bound) is None and getattr(bound, "afunc", None) is not None:
            return True
        if hasattr(bound, "nodes") and _awaits(bound):
            return True
    return False
