"""Draws how a backlog was published: CSV of BenchmarkFootprint in, SVG out."""

import csv
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "backlog"  # the same figures give the same file
import matplotlib.pyplot as plt

SLICE = 1.0  # seconds


def main(source: str, target: str) -> None:
    with open(source, newline="") as file:
        points = [(float(row["seconds"]), int(row["published"])) for row in csv.DictReader(file)]
    middles, rates = [], []
    start = points[0]
    for point in points:
        if point[0] - start[0] >= SLICE:
            middles.append((start[0] + point[0]) / 2)
            rates.append((point[1] - start[1]) / (point[0] - start[0]) / 1000)
            start = point
    figure, axis = plt.subplots(figsize=(9, 2.5), layout="constrained")
    axis.step(middles, rates, where="mid", linewidth=1, color="#2b5c8a")
    axis.set_ylim(bottom=0)
    axis.set_title("a backlog of a million results: thousands published per second", loc="left", fontsize=9)
    axis.set_xlabel("seconds since the start", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
