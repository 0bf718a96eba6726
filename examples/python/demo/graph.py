"""A small LangGraph graph that reviews an order: no model, no network.

load → score → approve | decline. An order that does not exist breaks it.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph

ORDERS = {"A-1": {"customer": "Ada", "total": 120.0}, "B-2": {"customer": "Bob", "total": 99_000.0}}


class Review(TypedDict, total=False):
    """The graph's state."""

    order_id: str
    order: dict[str, Any]
    risk: float
    decision: Literal["approved", "declined"]


def load(state: Review) -> Review:
    """Fetch the order."""
    return {"order": ORDERS[state["order_id"]]}


def score(state: Review) -> Review:
    """Estimate the risk, 0 to 1."""
    return {"risk": min(state["order"]["total"] / 100_000, 1.0)}


def approve(state: Review) -> Review:
    """Let the order pass."""
    return {"decision": "approved"}


def decline(state: Review) -> Review:
    """Stop the order."""
    return {"decision": "declined"}


def build() -> Any:
    """Compile the graph."""
    graph = StateGraph(Review)
    for node in (load, score, approve, decline):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "load")
    graph.add_edge("load", "score")
    graph.add_conditional_edges("score", lambda state: "decline" if state["risk"] > 0.5 else "approve")
    graph.add_edge("approve", END)
    graph.add_edge("decline", END)
    return graph.compile()
