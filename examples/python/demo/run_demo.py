"""Run the order review three times and hand each result to the sidecar."""

from __future__ import annotations

import argparse
import json
import sys
from uuid import uuid4

from graph import Review, build

from workflow_results import SidecarClient
from workflow_results.langgraph import run_and_publish


def why_declined(state: Review) -> str | None:
    """Say why a finished review is a failure, or None."""
    return "the review declined the order" if state["decision"] == "declined" else None


def review(client: SidecarClient, graph: object, order_id: str, correlation_id: str) -> str:
    """Run the graph for one order; its result goes out whatever happened. Return what became of the run."""
    try:
        outcome = run_and_publish(
            graph,
            {"order_id": order_id},
            client=client,
            correlation_id=correlation_id,
            workflow_id="order-review",
            workflow_run_id=f"run-{order_id}",
            failure=why_declined,
        )
    except KeyError as e:  # published as an error, and raised again
        return f"error, for the graph raised {e!r}"
    return f"{outcome.status}, on disk as seq {outcome.receipt.seq if outcome.receipt else None}"


def main() -> None:
    """Print the correlation IDs as JSON on stdout, the progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", help="the sidecar's socket (default: $SIDECAR_SOCKET)")
    args = parser.parse_args()
    graph = build()
    ids = {}
    with SidecarClient(args.socket) as client:
        for kind, order_id in (("success", "A-1"), ("failure", "B-2"), ("error", "C-3")):
            ids[kind] = str(uuid4())
            print(f"   order {order_id}: {review(client, graph, order_id, ids[kind])}", file=sys.stderr)
    print(json.dumps(ids))


if __name__ == "__main__":
    main()
