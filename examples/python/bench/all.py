"""Measure the Python package beside a real sidecar and a real Kafka: calls, foreign records, waits, by turns.

    make bench-python

A round is each of them once, in a process of its own. Samples go to --samples as JSON, after each round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from kafka import Kafka  # noqa: E402

from workflow_results import Sidecar  # noqa: E402


def run(script: str, *arguments: str) -> list[dict[str, Any]]:
    """Run one of the scripts beside this one; returns the objects that it printed."""
    done = subprocess.run(
        [sys.executable, HERE / script, *arguments], stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def measure(kafka: Kafka, sidecar: Sidecar, topic: str, round_: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure everything once."""
    load = os.getloadavg()[0]
    many = kafka.create_topic(f"many-{round_}", 6)
    calls = run("calling.py", "--socket", sidecar.socket_path, "--calls", str(given.calls))
    samples = [
        *({"what": "calls", **found} for found in calls),
        {"what": "skip", **run("waiting.py", "skip", "--brokers", kafka.addr, "--topic", topic)[0]},
        {"what": "waits", **run("waiting.py", "waits", "--brokers", kafka.addr, "--topic", many)[0]},
    ]
    return [{"round": round_, "load_average": load, **sample} for sample in samples]


def main() -> None:
    """Run the rounds."""
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--calls", type=int, default=2000, help="of each kind against each peer, a round")
    flags.add_argument("--records", type=int, default=500_000, help="foreign records to be skipped")
    flags.add_argument("--samples", type=Path, help="where the samples go (JSON)")
    given = flags.parse_args()
    book: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "cpus": os.cpu_count(), "python": platform.python_version(),
        "kernel": platform.release().partition("-")[0], "records": given.records, "samples": [],
    }  # fmt: skip
    kafka = Kafka()
    try:
        topic = kafka.create_topic("foreign", 6)
        run("waiting.py", "fill", "--brokers", kafka.addr, "--topic", topic, "--records", str(given.records))
        with tempfile.TemporaryDirectory() as directory, Sidecar(kafka.addr, data_dir=directory) as sidecar:
            for round_ in range(1, given.rounds + 1):
                found = measure(kafka, sidecar, topic, round_, given)
                book["samples"] += found
                print(*(json.dumps(sample) for sample in found), sep="\n", flush=True)
                if given.samples is not None:  # an interrupted run keeps its rounds
                    given.samples.write_text(json.dumps(book, indent=1) + "\n")
    finally:
        kafka.close()


if __name__ == "__main__":
    main()
