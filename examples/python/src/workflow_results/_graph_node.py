"""Publishing a result from within a graph, by a node."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, overload
from uuid import UUID, uuid4

from langchain_core.runnables import RunnableConfig

from workflow_results._graph_answer import Failure, Select, judge, thread_of
from workflow_results._handover import Answer, Identity, ahand_over, hand_over
from workflow_results.aio import AsyncSidecarClient
from workflow_results.client import SidecarClient
from workflow_results.receipt import Receipt

Node = Callable[[Any, RunnableConfig], dict[str, Any]]
AsyncNode = Callable[[Any, RunnableConfig], Coroutine[Any, Any, dict[str, Any]]]
CorrelationID = str | UUID | Callable[[Any, RunnableConfig], str | UUID]  # or found in the state and the config


@overload
def publish_result(
    client: SidecarClient,
    *,
    workflow_id: str,
    correlation_id: CorrelationID | None = None,
    workflow_run_id: str | None = None,
    generation: int = 0,
    failure: Failure | None = None,
    select: Select | None = None,
    receipt_key: str | None = None,
) -> Node: ...


@overload
def publish_result(
    client: AsyncSidecarClient,
    *,
    workflow_id: str,
    correlation_id: CorrelationID | None = None,
    workflow_run_id: str | None = None,
    generation: int = 0,
    failure: Failure | None = None,
    select: Select | None = None,
    receipt_key: str | None = None,
) -> AsyncNode: ...


def publish_result(
    client: SidecarClient | AsyncSidecarClient,
    *,
    workflow_id: str,
    correlation_id: CorrelationID | None = None,
    workflow_run_id: str | None = None,
    generation: int = 0,
    failure: Failure | None = None,
    select: Select | None = None,
    receipt_key: str | None = None,
) -> Node | AsyncNode:
    """Make a node that publishes the state as it is when the graph comes to it::

        graph.add_node("publish", publish_result(client, workflow_id="order-review"))
        ...
        graph.compile().invoke(order, {"configurable": {"correlation_id": trigger_event_id}})

    The node of a ``SidecarClient`` works in graphs that are invoked and in graphs
    that are awaited (there LangGraph calls it in a thread); the node of an
    ``AsyncSidecarClient`` in graphs that are awaited.

    Args:
        client: the sidecar's client.
        workflow_id: which workflow this is.
        correlation_id: the event ID of the trigger, or a function that finds it in the state and
            the config; if left out, the config has it as ``configurable["correlation_id"]``.
        workflow_run_id: which run of it; the config's ``thread_id`` if left out, or else a new UUID.
        generation: another number publishes another result for the same correlation ID.
        failure: gets the state and returns why it is a failure, or None.
        select: gets the state and returns what becomes the result.
        receipt_key: the key of the state that gets the receipt, as a dict; none if left out.

    The node raises what ``run_and_publish`` raises when a result cannot be handed
    over, and ValueError where there is no correlation ID.
    """

    def prepare(state: Any, config: RunnableConfig) -> tuple[Identity, Answer]:
        found = correlation_id(state, config) if callable(correlation_id) else correlation_id
        run = workflow_run_id or thread_of(config) or str(uuid4())
        identity = Identity.of(found or _configured(config), workflow_id, run, generation)
        return identity, judge(state, failure, select)

    def update(receipt: Receipt) -> dict[str, Any]:
        return {receipt_key: asdict(receipt)} if receipt_key else {}

    if isinstance(client, AsyncSidecarClient):

        async def anode(state: Any, config: RunnableConfig) -> dict[str, Any]:
            return update(await ahand_over(client, *prepare(state, config)))

        return anode

    def node(state: Any, config: RunnableConfig) -> dict[str, Any]:
        return update(hand_over(client, *prepare(state, config)))

    return node


def _configured(config: RunnableConfig) -> str | UUID:
    found: str | UUID | None = (config.get("configurable") or {}).get("correlation_id")
    if not found:
        raise ValueError(
            "no correlation ID: give publish_result a correlation_id=, or the run's config "
            'a {"configurable": {"correlation_id": ...}}'
        )
    return found
