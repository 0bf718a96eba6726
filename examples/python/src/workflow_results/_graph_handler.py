"""Publishing the result of graphs that are run elsewhere, by a callback handler."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent

from workflow_results._graph_answer import Failure, Select, answer_to, judge
from workflow_results._handover import Identity, error_answer, hand_over
from workflow_results.aio import AsyncSidecarClient
from workflow_results.client import SidecarClient

_REMEMBERED = 64  # runs that ended, so that what still goes on within them is not taken for a run of its own


@dataclass
class _Root:
    """A run that nothing else which we saw had begun."""

    run_id: UUID
    identity: Identity
    interrupted: bool = False
    ended: bool = False
    members: list[UUID] = field(default_factory=list)  # itself, and all that runs within it


class ResultCallbackHandler(GraphCallbackHandler):
    """Publishes the one result of each run of a graph that it is given to.

    Pass it with the graph's own config, to ``invoke``, ``stream``, ``ainvoke``,
    ``astream`` or ``astream_events``::

        handler = ResultCallbackHandler(client, workflow_id="order-review")
        graph.invoke(order, {"callbacks": [handler], "metadata": {"correlation_id": trigger_event_id}})

    One handler serves any number of runs, one after another and at once. Graphs
    and tools within a run are part of it. A stream has ended when it is read to
    its end; one that is closed earlier publishes nothing, even after its last item.

    Its errors reach whoever runs the graph, those of ``run_and_publish``; a
    TypeError as the ValueError that it causes. So does a ``WorkflowFailure``, once
    it is published: a handler cannot turn an exception into a return.

    Args:
        client: a ``SidecarClient``, for graphs that are awaited too: LangChain then
            calls the handler in a thread, and an asynchronous handler's errors
            would not reach a caller that does not await.
        workflow_id: which workflow this is.
        correlation_id: the event ID of the trigger; if left out, each run has its own
            in its config, as ``metadata["correlation_id"]``.
        workflow_run_id: which run of it; if left out, the config's ``thread_id``, or else the ID
            that LangChain gave the run.
        generation: another number publishes another result for the same correlation ID.
        failure: gets the final state and returns why it is a failure, or None.
        select: gets the final state and returns what becomes the result.

    Raises:
        TypeError: the client is an ``AsyncSidecarClient``.
    """

    raise_error = True

    def __init__(
        self,
        client: SidecarClient,
        *,
        workflow_id: str,
        correlation_id: str | UUID | None = None,
        workflow_run_id: str | None = None,
        generation: int = 0,
        failure: Failure | None = None,
        select: Select | None = None,
    ) -> None:
        """Remember what to publish as; nothing is sent yet."""
        if isinstance(client, AsyncSidecarClient):
            raise TypeError("ResultCallbackHandler takes a SidecarClient, for graphs that are awaited too")
        self._client = client
        self._workflow_id = workflow_id
        self._correlation_id = correlation_id
        self._workflow_run_id = workflow_run_id
        self._generation = generation
        self._failure = failure
        self._select = select
        self._lock = threading.Lock()
        self._root_of: dict[UUID, _Root] = {}  # by the ID of every run that belongs to it
        self._ended: deque[_Root] = deque()

    def on_chain_start(
        self,
        *args: Any,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """See a run begin: a part of one that we know, or a new one.

        Raises:
            ValueError: no correlation ID, or no UUID. The graph does not run.
        """
        if self._join(run_id, parent_run_id):
            return
        root = _Root(run_id, self._identity(run_id, metadata or {}), members=[run_id])
        with self._lock:
            self._root_of[run_id] = root

    def on_tool_start(self, *args: Any, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        """See a tool begin: a graph that it calls is a part of the run, too."""
        self._join(run_id, parent_run_id)

    on_retriever_start = on_tool_start
    on_llm_start = on_tool_start
    on_chat_model_start = on_tool_start

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        """See a graph interrupted. LangGraph ends its run as if it were a success."""
        with self._lock:
            root = self._root_of.get(event.run_id) if event.run_id else None
            if root is not None and root.run_id == event.run_id:
                root.interrupted = True

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Publish the result of a run that came to its end."""
        root = self._end(run_id)
        if root is None or root.interrupted:
            return
        try:
            self._publish(outputs, root.identity)
        except TypeError as e:
            # langchain-core 1.7 takes a TypeError in here for a sign of an old Python, and awaits what it has
            # awaited: the caller would hear of that.
            raise ValueError(f"TypeError: {e}") from e

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Publish what broke a run; nothing, if it can be resumed, was cancelled or abandoned."""
        root = self._end(run_id)
        if root is not None and (said := answer_to(error)) is not None:
            hand_over(self._client, root.identity, said)

    def _publish(self, outputs: Any, identity: Identity) -> None:
        try:
            answer = judge(outputs, self._failure, self._select)
        except Exception as e:
            hand_over(self._client, identity, answer_to(e) or error_answer(e))
            raise
        hand_over(self._client, identity, answer)

    def _identity(self, run_id: UUID, metadata: Mapping[str, Any]) -> Identity:
        correlation_id = self._correlation_id or metadata.get("correlation_id")
        if not correlation_id:
            raise ValueError(
                "no correlation ID: give ResultCallbackHandler a correlation_id=, or the run's config "
                'a {"metadata": {"correlation_id": ...}}'
            )
        workflow_run_id = self._workflow_run_id or str(metadata.get("thread_id") or run_id)
        return Identity.of(correlation_id, self._workflow_id, workflow_run_id, self._generation)

    def _join(self, run_id: UUID, parent_run_id: UUID | None) -> bool:
        """Count a run to that of its parent, if we know it: a tracer outside may be a parent, and is none of ours."""
        with self._lock:
            root = self._root_of.get(parent_run_id) if parent_run_id else None
            if root is None:
                return False
            self._root_of[run_id] = root
            root.members.append(run_id)
            return True

    def _end(self, run_id: UUID) -> _Root | None:
        """Return the root that ends; None for a part of one, and when it has ended already.

        An error of our own in on_chain_end comes back as on_chain_error of the same run.
        """
        with self._lock:
            root = self._root_of.get(run_id)
            if root is None or root.run_id != run_id or root.ended:
                return None
            root.ended = True
            self._ended.append(root)
            if len(self._ended) > _REMEMBERED:
                for member in self._ended.popleft().members:
                    self._root_of.pop(member, None)
            return root
