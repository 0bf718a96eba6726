"""Writes the tables of docs/PERFORMANCE.md and draws its picture from the samples of BenchmarkPeers.

    peers.py SAMPLES.json PERFORMANCE.md PICTURE.svg

A table stands between `<!-- NAME -->` and `<!-- end -->` and is written anew.
"""

import json
import re
import statistics
import sys
from collections.abc import Iterable

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "peers"  # the same figures give the same file
import matplotlib.pyplot as plt

SIDECAR = "sidecar"
# What each does not promise with its answer.
LACKS = {
    "sidecar": "",
    "sidecar, at least once": "exactly once: a crash can publish a result twice, with the same ce_id",
    "Bento, documented": "to be on disk (SQLite, synchronous = 0); one row per event_id; exactly once across a crash",
    "Bento, batched": "as above; an answer also waits for up to 64 others, or 5 ms",
    "Bento, unbuffered": "to be on this machine's disk: no answer while Kafka is away; one row per event_id; exactly once",
    "aiokafka": "to be on this machine's disk: calls wait while Kafka is away, and die with the process; exactly once",
    "rsyslog": "anything, for there is none: a sender never learns what is kept; exactly once; one row per event_id",
    "empty handler": "anything",
}
PEERS = list(LACKS)[1:]
BENTO = ["Bento, documented", "Bento, batched", "Bento, unbuffered"]
COLUMNS = [
    ("answered/s", "answered_per_second"),
    ("end to end/s", "end_to_end_per_second"),
    ("p50 ms", "p50_ms"),
    ("p99 ms", "p99_ms"),
    ("CPU µs/result", "cpu_us_per_result"),
    ("RSS MiB", "rss_mib"),
]

Sample = dict[str, float]


def number(value: float) -> str:
    """Returns value with three significant digits, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def spread(values: Iterable[float]) -> str:
    """Returns the median, and the least and the greatest in brackets; a dash where there is nothing."""
    known = [value for value in values if value]
    if not known:
        return "–"
    return f"{number(statistics.median(known))} ({number(min(known))}–{number(max(known))})"


class Book:
    """The samples of a run, in the order in which they were taken."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def of(self, system: str, connections: int) -> list[Sample]:
        return [s for s in self.samples if s["system"] == system and s["connections"] == connections]

    def values(self, system: str, connections: int, field: str) -> list[float]:
        return [s[field] for s in self.of(system, connections)]

    def by_round(self, system: str, connections: int, field: str) -> dict[int, float]:
        """Returns the median of each round."""
        rounds: dict[int, list[float]] = {}
        for s in self.of(system, connections):
            rounds.setdefault(int(s["round"]), []).append(s[field])
        return {n: statistics.median(values) for n, values in rounds.items()}

    def ratios(self, peer: str, connections: int, field: str) -> list[float]:
        """Returns the sidecar's value divided by the peer's, each with the sidecar's run just before the peer's."""
        found = []
        for before, s in zip(self.samples, self.samples[1:], strict=False):
            neighbours = before["system"] == SIDECAR and before["connections"] == s["connections"] == connections
            if s["system"] == peer and neighbours and s[field]:
                found.append(before[field] / s[field])
        return found


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def systems(book: Book, connections: int) -> str:
    rows = []
    for system in LACKS:
        cells = [spread(book.values(system, connections, field)) for _, field in COLUMNS]
        field = "end_to_end_per_second" if system == "rsyslog" else "answered_per_second"
        ratio = spread(book.ratios(system, connections, field)) if system != SIDECAR else "1"
        rows.append([system, cells[0], ratio, *cells[1:]])
    return table(["", COLUMNS[0][0], "sidecar ÷ it", *(title for title, _ in COLUMNS[1:])], rows)


def limits(book: Book) -> str:
    names = list(dict.fromkeys(str(s["system"]) for s in book.samples if s["connections"] == 0))
    shown = COLUMNS[:5]
    return table(
        ["", *(title for title, _ in shown)],
        [[name, *(spread(book.values(name, 0, f)) for _, f in shown)] for name in names],
    )


def promises() -> str:
    return table(["", "its answer does not promise"], [[name, text] for name, text in LACKS.items() if text])


def together(a: dict[int, float], *others: dict[int, float]) -> list[tuple[float, ...]]:
    """Returns the values of each round that all have."""
    return [(value, *(o[n] for o in others)) for n, value in a.items() if all(n in o for o in others)]


class Aims:
    """What was wanted, what was measured, and whether that is enough."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def row(self, aim: str, what: str, values: list[float], sign: str, bound: float, unit: str = "") -> None:
        """Judges the median of values; without any there is nothing to say."""
        if not values:
            return
        median = statistics.median(values)
        met = median >= bound if sign == "≥" else median <= bound
        self.rows.append([aim, what, f"{sign} {number(bound)}{unit}", spread(values) + unit, "met" if met else "**missed**"])

    def table(self) -> str:
        return table(["aim", "what", "wanted", "measured", ""], self.rows)


def aims(book: Book) -> str:
    rate, end, p50, p99, cpu = (field for _, field in COLUMNS[:5])
    rounds = book.by_round
    commit = rounds("SQLite, 1 row, paused", 0, p50)
    found = Aims()
    row = found.row

    for peer, bound in [("Bento, batched", 1.5), ("aiokafka", 1.5), ("Bento, documented", 15), ("empty handler", 0.4)]:
        row("1", f"answers/s ÷ {peer}, 64 connections", book.ratios(peer, 64, rate), "≥", bound)
    for connections in (64, 256, 1000):
        best = together(
            rounds(SIDECAR, connections, p99), *(rounds(peer, connections, p99) for peer in [*BENTO, "aiokafka"])
        )
        row(
            "1",
            f"p99 ÷ the best p99 of Bento and aiokafka, {connections}",
            [own / min(theirs) for own, *theirs in best],
            "≤",
            1,
        )
    for connections in (256, 1000):
        pairs = together(rounds(SIDECAR, connections, rate), rounds(SIDECAR, 64, rate))
        row("1", f"answers/s with {connections} ÷ with 64 connections", [a / b for a, b in pairs], "≥", 1)
    one = rounds(SIDECAR, 1, p50)
    row(
        "2",
        "one connection, p50 ÷ a commit of one row after a pause",
        [a / b for a, b in together(one, commit)],
        "≤",
        1.3,
    )
    back = together(one, rounds("SQLite, rows=1", 0, p50))
    row("2", "one connection, p50 ÷ a commit of one row back to back", [a / b for a, b in back], "≤", 1.3)
    batches = together(rounds("sidecar, batches of 256", 0, rate), rounds("SQLite, rows=256", 0, rate))
    row("2", "batches of 256, rows/s ÷ SQLite's own", [a / b for a, b in batches], "≥", 0.7)
    seen = "sidecar, POST to visible, "
    pairs = together(rounds(seen + "at-least-once", 0, p50), commit)
    row("3", "at least once, POST to visible, p50 − a commit", [a - b for a, b in pairs], "≤", 3, " ms")
    triples = together(
        rounds(seen + "exactly-once", 0, p50), commit, rounds("franz-go, transaction of 1, paused", 0, p50)
    )
    row(
        "3",
        "exactly once, POST to visible, p50 ÷ (a commit + 2 bare transactions)",
        [a / (b + 2 * c) for a, b, c in triples],
        "≤",
        1,
    )
    for system in (SIDECAR, "sidecar, at least once"):
        pairs = [(s[end], s[rate]) for s in book.of(system, 64)]
        row("3", f"{system}: end to end ÷ answered, 64", [a / b for a, b in pairs], "≥", 0.9)
    large = next(
        (name for s in book.samples if (name := str(s["system"])).startswith("franz-go, transactions of ")), ""
    )
    for mode, alone in [("exactly-once", large), ("at-least-once", "franz-go, plain")]:
        pairs = together(rounds(f"sidecar, backlog, {mode}", 0, end), rounds(alone, 0, rate))
        row("3", f"backlog of 200 000, {mode} ÷ {alone}", [a / b for a, b in pairs], "≥", 0.5)
    row("5", "CPU per result ÷ Bento, batched, 64", book.ratios("Bento, batched", 64, cpu), "≤", 0.5)
    return found.table()


def write_parts(document: str, parts: dict[str, str]) -> None:
    """Writes each part between its two marks in a document."""
    with open(document) as file:
        text = file.read()
    for name, part in parts.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda m, part=part: f"{m[1]}{part}\n{m[2]}",
            text,
            flags=re.DOTALL,
        )
    with open(document, "w") as file:
        file.write(text)


def draw(book: Book, target: str) -> None:
    panels = [
        ("answers per second (rsyslog: end to end)", "answered_per_second"),
        ("p99, ms (logarithmic)", "p99_ms"),
        ("CPU per result, µs (logarithmic)", "cpu_us_per_result"),
    ]
    connections = sorted({int(s["connections"]) for s in book.samples} - {0})
    figure, axes = plt.subplots(
        len(panels),
        len(connections),
        figsize=(4 * len(connections), 2.6 * len(panels)),
        layout="constrained",
        sharex="row",
    )
    names = list(LACKS)
    for line, (title, field) in zip(axes, panels, strict=True):
        for axis, count in zip(line, connections, strict=True):
            for place, name in enumerate(names):
                chosen = "end_to_end_per_second" if name == "rsyslog" and field == "answered_per_second" else field
                values = [value for value in book.values(name, count, chosen) if value]
                if not values:
                    continue
                middle = statistics.median(values)
                error = [[middle - min(values)], [max(values) - middle]]
                color = "#2b5c8a" if name.startswith(SIDECAR) else "#8a939c"
                if field == "answered_per_second":
                    axis.barh(place, middle, xerr=error, color=color, error_kw={"linewidth": 1, "ecolor": "#444444"})
                else:  # a bar has no foot on a logarithmic axis
                    axis.errorbar(middle, place, xerr=error, fmt="o", markersize=5, color=color, elinewidth=1)
                    axis.set_xscale("log")
            axis.set_yticks(range(len(names)), names if axis is line[0] else [""] * len(names), fontsize=8)
            axis.invert_yaxis()
            axis.tick_params(axis="x", labelsize=8)
            axis.grid(axis="x", alpha=0.3)
            axis.set_title(f"{title}, {count} connection{'s' if count > 1 else ''}", loc="left", fontsize=8)
    figure.savefig(target, metadata={"Date": None})


def main(source: str, document: str, picture: str) -> None:
    with open(source) as file:
        run = json.load(file)
    book = Book(run["samples"])
    parts = {f"systems {n}": systems(book, n) for n in (1, 64, 256, 1000)}
    parts |= {"limits": limits(book), "promises": promises(), "aims": aims(book)}
    loads = [s["load_average"] for s in run["samples"]]
    parts["run"] = (
        f"{run['date']}, {run['cpus']} CPUs, Linux {run['kernel']}, {max(s['round'] for s in run['samples'])} rounds of "
        f"{run['seconds_per_run']:g} s per run; load average of the machine before a run {spread(loads)}."
    )
    write_parts(document, parts)
    draw(book, picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
