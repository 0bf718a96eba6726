"""Writes the tables of the Python package in docs/PERFORMANCE.md from the samples of examples/python/bench.

python.py SAMPLES.json PERFORMANCE.md
"""

import json
import sys

from peers import Aims, Sample, number, spread, table, write_parts

SIDECAR, STUB = "sidecar", "answers at once"
WAYS = {
    "bare": "bare exchange, one after the other",
    "bare, after a pause": "bare exchange, each after as long a pause as the client computes",
    "client": "`SidecarClient.publish`",
    "client, asyncio": "`AsyncSidecarClient.publish`",
}


def of(samples: list[Sample], what: str, peer: str | None = None) -> list[Sample]:
    return [s for s in samples if s["what"] == what and s.get("peer") == peer]


def calls(samples: list[Sample]) -> str:
    rows = []
    for way, name in WAYS.items():
        row = [name]
        for peer in (SIDECAR, STUB):
            found = of(samples, "calls", peer)
            ratio = "1" if way == "bare" else spread(s[way] / s["bare"] for s in found)
            row += [spread(s[way] for s in found), ratio]
        rows.append(row)
    return table(["", "sidecar, µs", "÷ bare", "a peer that answers at once, µs", "÷ bare"], rows)


def hub(samples: list[Sample]) -> str:
    skip, waits = of(samples, "skip"), of(samples, "waits")
    rows = [
        ["foreign records/s", spread(s["foreign_per_second"] for s in skip)],
        ["foreign records per second of its CPU", spread(s["foreign_per_cpu_second"] for s in skip)],
        ["memory while it skips them, beyond a hub at rest, MiB", spread(s["memory_beyond_a_hub_at_rest_mib"] for s in skip)],
        ["2 000 waits: the whole process, MiB", spread(s["total_mib"] for s in waits)],
        ["of which waits, hub and Kafka client, MiB", spread(s["increment_mib"] for s in waits)],
        ["of which imports (pydantic, confluent-kafka), MiB", spread(s["imported_mib"] - s["bare_python_mib"] for s in waits)],
        ["of which Python itself, MiB", spread(s["bare_python_mib"] for s in waits)],
        ["2 000 results sent and all waits answered, s", spread(s["answered_seconds"] for s in waits)],
    ]  # fmt: skip
    return table(["", "median (least–greatest)"], rows)


def aims(samples: list[Sample]) -> str:
    skip, waits = of(samples, "skip"), of(samples, "waits")
    found = Aims()
    for peer, name in ((SIDECAR, "the sidecar"), (STUB, "a peer that answers at once")):
        ratios = [s["client"] / s["bare"] for s in of(samples, "calls", peer)]
        found.row("6", f"a call of the client ÷ a bare exchange, with {name}", ratios, "≤", 2.5)
    found.row("6", "the waiting hub, foreign records/s", [s["foreign_per_second"] for s in skip], "≥", 150_000)
    found.row("6", "2 000 waits, beyond the imports", [s["increment_mib"] for s in waits], "≤", 60, " MiB")
    found.row("6", "2 000 waits, the whole process", [s["total_mib"] for s in waits], "≤", 60, " MiB")
    return found.table()


def main(source: str, document: str) -> None:
    with open(source) as file:
        run = json.load(file)
    samples = run["samples"]
    loads = spread(s["load_average"] for s in samples)
    write_parts(
        document,
        {
            "python run": f"{run['date']}, Python {run['python']}, {max(s['round'] for s in samples)} rounds, "
            f"{number(run['records'])} foreign records of 1 KiB; load average before a round {loads}.",
            "python": calls(samples),
            "python hub": hub(samples),
            "python aims": aims(samples),
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
