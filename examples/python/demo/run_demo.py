"""Run the order review three times and hand each result to the sidecar."""

from __future__ import annotations

import argparse
import json
import sys
from uuid import uuid4

from graph import build

from workflow_results import Receipt, SidecarClient


def review(client: SidecarClient, graph: object, order_id: str, correlation_id: str) -> Receipt:
    """Run the graph for one order; its result goes out whatever happened."""
    about = {
        "correlation_id": correlation_id,
        "workflow_id": "order-review",
        "workflow_run_id": f"run-{order_id}",
    }
    try:
        state = graph.invoke({"order_id": order_id})  # type: ignore[attr-defined]
    except Exception as e:
        return client.publish(**about, status="error", error=f"{type(e).__name__}: {e}")
    if state["decision"] == "declined":
        return client.publish(**about, status="failure", result=state, error="the review declined the order")
    return client.publish(**about, result=state)


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
            receipt = review(client, graph, order_id, ids[kind])
            print(
                f"   order {order_id}: {kind}, on disk as seq {receipt.seq} ({receipt.state})",
                file=sys.stderr,
            )
    print(json.dumps(ids))


if __name__ == "__main__":
    main()
