"""What `make test-wheel` runs in a fresh environment: the wheel alone must do."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from uuid import uuid4

import workflow_results
from workflow_results import _binary
from workflow_results.sidecar import Sidecar


def main() -> None:
    """Start the wheel's own sidecar, hand over a result, and see it published."""
    began = time.monotonic()
    package = Path(workflow_results.__file__).parent
    if Path(sys.prefix) not in package.parents:
        sys.exit(f"{package} is not the installed wheel")
    if _binary.find_binary() != str(package / "_bin" / "sidecar"):
        sys.exit(f"not the wheel's binary: {_binary.find_binary()}")
    with Sidecar(embedded_broker=True, args=["--linger", "0s"]) as sidecar, sidecar.client() as client:
        receipt = client.publish(
            correlation_id=uuid4(), workflow_id="wheel", workflow_run_id="1", result={}, wait_published=20
        )
    if receipt.state != "published":
        sys.exit(f"not published: {receipt}")
    print(f"started, published and ended in {time.monotonic() - began:.2f} s: {receipt}")


if __name__ == "__main__":
    main()
