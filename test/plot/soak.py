"""Draws what TestSoak sampled: CSV in, SVG out."""

import csv
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "soak"  # the same figures give the same file
import matplotlib.pyplot as plt

PANELS = [
    ("resident memory, MiB", "rss_bytes", 1 << 20),
    ("file, MiB", "file_bytes", 1 << 20),
    ("write-ahead log, MiB", "wal_bytes", 1 << 20),
    ("results held, thousands", "held", 1000),
    ("pending", "pending", 1),
    ("goroutines", "goroutines", 1),
    ("descriptors", "descriptors", 1),
]


def main(source: str, target: str) -> None:
    with open(source, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    minutes = [row["seconds"] / 60 for row in rows]
    figure, axes = plt.subplots(len(PANELS), 1, sharex=True, figsize=(9, 1.25 * len(PANELS)), layout="constrained")
    for axis, (title, field, unit) in zip(axes, PANELS, strict=True):
        axis.plot(minutes, [row[field] / unit for row in rows], linewidth=1, color="#2b5c8a")
        axis.set_ylim(bottom=0)
        axis.set_title(title, loc="left", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes", fontsize=9)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
