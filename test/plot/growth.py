"""Writes the tables of growth in docs/PERFORMANCE.md from the samples of BenchmarkGrowth.

growth.py SAMPLES.json PERFORMANCE.md
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from peers import Aims, spread, table, write_parts

Sample = dict[str, Any]
MIB = 1 << 20


def power(rows: int) -> str:
    """Returns a power of ten as people write it."""
    exponent = len(str(rows)) - 1
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(exponent)) if rows == 10**exponent else str(rows)


class Book:
    """The samples of a run."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def of(self, what: str, how: str = "", rows: int = 0) -> list[Sample]:
        """Returns the samples of one kind; rows 0 is any."""
        found = [s for s in self.samples if s["what"] == what and s.get("how", "") == how]
        return [s for s in found if rows in (0, s["rows"])]

    def sizes(self, what: str, how: str = "") -> list[int]:
        return sorted({int(s["rows"]) for s in self.of(what, how)})

    def rounds(self) -> list[list[Sample]]:
        """Returns the samples of each round."""
        numbers = sorted({s["round"] for s in self.samples} - {0})
        return [[s for s in self.samples if s["round"] == n] for n in numbers]


def file_ratio(s: Sample) -> float:
    """Returns the bytes of the closed file for each byte of what it holds."""
    return float(s["file_bytes_after"] / (1024 * s["rows_after"]))


def intake(book: Book) -> str:
    columns: list[tuple[str, Callable[[Sample], float]]] = [
        ("answered/s", lambda s: s["answered_per_second"]),
        ("p50 ms", lambda s: s["p50_ms"]),
        ("p99 ms", lambda s: s["p99_ms"]),
        ("p99 of the worst second, ms", lambda s: s["worst_second_p99_ms"]),
        ("longest gap ms", lambda s: s["longest_gap_ms"]),
        ("written KiB/result", lambda s: s.get("written_bytes_per_result", 0) / 1024),
        ("peak MiB", lambda s: s["peak_mib"]),
        ("file ÷ payload", file_ratio),
    ]
    rows = [
        [f"{power(size)} {what}", *(spread(f(s) for s in book.of(what, rows=size)) for _, f in columns)]
        for what in ("pending", "history")
        for size in book.sizes(what)
    ]
    return table(["", *(title for title, _ in columns)], rows)


def starts(book: Book) -> str:
    columns: list[tuple[str, Callable[[Sample], float]]] = [
        ("socket open, ms", lambda s: s["open_ms"]),
        ("first result answered, ms", lambda s: s["durable_ms"]),
        ("log MiB", lambda s: s["log_bytes"] / MIB),
        ("peak MiB", lambda s: s["peak_mib"]),
    ]
    rows = [
        [f"{power(size)}, {how}", *(spread(f(s) for s in book.of("start", how, size)) for _, f in columns)]
        for how in ("clean end", "kill")
        for size in book.sizes("start", how)
    ]
    return table(["", *(title for title, _ in columns)], rows)


STEPS = {
    ("drain", ""): "published to Kafka",
    ("retention", "off"): "64 connections, all kept",
    ("retention", "payloads"): "64 connections, while payloads are deleted",
    ("retention", "rows"): "64 connections, while rows are deleted",
    ("shrink", ""): "the rest published and deleted",
}


def emptying(book: Book) -> str:
    columns: list[tuple[str, Callable[[Sample], float]]] = [
        ("seconds", lambda s: s.get("seconds", 0)),
        ("published or deleted/s", lambda s: s.get("per_second", 0)),
        ("answered/s", lambda s: s.get("answered_per_second", 0)),
        ("p99 ms", lambda s: s.get("p99_ms", 0)),
        ("p99 of the worst second, ms", lambda s: s.get("worst_second_p99_ms", 0)),
        ("longest gap ms", lambda s: s.get("longest_gap_ms", 0)),
        ("peak MiB", lambda s: s["peak_mib"]),
        ("file before, MiB", lambda s: s["file_bytes"] / MIB),
        ("and after", lambda s: s["file_bytes_after"] / MIB),
    ]
    rows = [[text, *(spread(f(s) for s in book.of(*step)) for _, f in columns)] for step, text in STEPS.items()]
    return table(["", *(title for title, _ in columns)], rows)


def aims(book: Book) -> str:
    found = Aims()
    for what in ("pending", "history"):
        for title, field in (("answers/s", "answered_per_second"), ("p99", "p99_ms")):
            of_rounds = ([s[field] for s in samples if s["what"] == what] for samples in book.rounds())
            sizes = ", ".join(power(n) for n in book.sizes(what))
            ratios = [min(values) / max(values) for values in of_rounds if values]
            found.row("4", f"{title}, least ÷ greatest of {sizes} {what}", ratios, "≥", 0.8)
    for how, bound in (("clean end", 150), ("kill", 500)):
        for size in book.sizes("start", how):
            opens = [s["open_ms"] for s in book.of("start", how, size)]
            found.row("4", f"start to an open socket, {power(size)} pending, after a {how}", opens, "≤", bound, " ms")
    peaks = [max(s["peak_mib"] for s in samples if "peak_mib" in s) for samples in book.rounds()]
    found.row("4", "memory, peak of any run", peaks, "≤", 64, " MiB")
    for size in book.sizes("pending"):
        ratios = [file_ratio(s) for s in book.of("pending", rows=size)]
        found.row("4", f"file ÷ payload, {power(size)} pending and what came in", ratios, "≤", 1.3)
    found.row(
        "4",
        "file ÷ before, all published and deleted",
        [s["file_bytes_after"] / s["file_bytes"] for s in book.of("shrink")],
        "≤",
        0.1,
    )
    p99 = [s["p99_ms"] for s in book.of("retention", "off")]
    for how in ("payloads", "rows"):
        for title, field in (("longest gap", "longest_gap_ms"), ("p99 of the worst second", "worst_second_p99_ms")):
            beside = [s[field] for s in book.of("retention", how)]
            found.row("4", f"{title} while {how} are deleted ÷ p99 without", quotients(beside, p99), "≤", 2)
    return found.table()


def quotients(a: Iterable[float], b: Iterable[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=False)]  # an interrupted run lacks its last


def main(source: str, document: str) -> None:
    with open(source) as file:
        run = json.load(file)
    book = Book(run["samples"])
    loads = [s["load_average"] for s in run["samples"]]
    ordered = (
        "; those of "
        + power(max(s["rows"] for s in book.of("fill", "IDs in order")))
        + " were put in with their IDs in order"
    )
    write_parts(
        document,
        {
            "growth": intake(book),
            "growth starts": starts(book),
            "growth emptying": emptying(book),
            "growth aims": aims(book),
            "growth run": f"{run['date']}, {run['cpus']} CPUs, Linux {run['kernel']}, {len(book.rounds())} rounds of {run['seconds_per_run']:g} s per "
            f"load{ordered if book.of('fill', 'IDs in order') else ''}; load average of the machine before a run {spread(loads)}.",
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
