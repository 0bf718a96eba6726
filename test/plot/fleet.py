"""Writes the table of the fleet in docs/PERFORMANCE.md from the samples of BenchmarkFleet.

fleet.py SAMPLES.json PERFORMANCE.md
"""

import json
import statistics
import sys

from peers import number, table, write_parts

ROWS = [
    ("all publish after, s", "start_seconds", 1),
    ("answered/s", "answered_per_second", 1),
    ("transactions/s", "transactions_per_second", 1),
    ("POST to visible, p50 ms", "p50_ms", 1),
    ("POST to visible, p99 ms", "p99_ms", 1),
    ("broker: CPU under the load, % of one", "broker_cpu", 100),
    ("broker: CPU per result, beyond idle, µs", "broker_cpu_us_per_result", 1),
    ("broker: requests/s", "requests_per_second", 1),
    ("broker: RSS, MiB (heap at most 512)", "broker_rss_mib", 1),
    ("broker: connections", "connections", 1),
    ("broker: open files", "broker_files", 1),
    ("sidecars: CPU of all, % of one", "sidecars_cpu", 100),
    ("sidecars: RSS of one, median, MiB", "sidecar_rss_mib", 1),
    ("sidecars: RSS of all, MiB", "sidecars_rss_mib", 1),
    ("transactional IDs", "transactional_ids", 1),
    ("producer IDs", "producer_ids", 1),
    ("producer states (a producer on a partition)", "producer_states", 1),
    ("watermark topic, records and markers", "watermark_records", 1),
    ("watermark topic, bytes per transaction, before compaction", "watermark_bytes_per_transaction", 1),
    ("__transaction_state, bytes per transaction, before compaction", "transaction_state_bytes_per_transaction", 1),
    ("results topic, bytes per result, compressed", "result_bytes_per_result", 1),
    ("idle: broker's CPU, % of one", "idle_broker_cpu", 100),
    ("idle: CPU of all sidecars, % of one", "idle_sidecars_cpu", 100),
    ("idle: connections opened/s (of the whole machine)", "idle_connections_opened_per_second", 1),
    ("idle: connections", "idle_connections", 1),
    ("a new sidecar publishes after, s", "newcomer_seconds", 1),
    ("the same with 200 000 more watermarks of others, s", "newcomer_seconds_foreign", 1),
]

FLEET = 10_000
PARTITIONS = 48  # of the results, and as many of the watermarks
MARKER_BYTES = 78  # a batch with a marker alone: 61 of its head, 17 of its record
LOOK_SECONDS, LOOK_REQUESTS = 60, {"exactly-once": 8, "at-least-once": 6}  # a sidecar's look at its topics
DAY = 86_400


def size(value: float) -> str:
    """Returns a number of bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{number(value)} {unit}"


def paper(samples: dict[str, dict[str, float]]) -> str:
    """Reckons what a cluster has to bear from what one broker did. One replica; each further one writes as much."""
    cases = [(mode, name, rate) for name, rate in (("often", FLEET), ("seldom", FLEET / 60)) for mode in samples]
    rows: dict[str, list[str]] = {}
    for mode, _, rate in cases:
        s = samples[mode]
        exactly = mode == "exactly-once"
        requests = s["requests_per_second"] / s["answered_per_second"] * rate
        looks = FLEET / LOOK_SECONDS
        reading = s["newcomer_seconds_foreign"] - s["newcomer_seconds"]
        # A client closes a connection that was idle for half a minute.
        open_ = FLEET * s["connections"] / s["sidecars"] * min(1, 30 * rate / FLEET)
        cpu = (s["broker_cpu"] - s["idle_broker_cpu"]) / (s["transactions_per_second"] or s["answered_per_second"])
        markers = MARKER_BYTES * rate * DAY
        states = FLEET * (PARTITIONS + exactly)
        cells = {
            "results/s": number(rate),
            "transactions/s": number(rate) if exactly else "0",
            "processors of all brokers, one replica": number(rate * cpu),
            "requests/s for results": number(requests),
            "requests/s for looks, and connections opened/s": f"{number(looks * LOOK_REQUESTS[mode])}, {number(looks * 2)}",
            "connections at one broker; at 12 together": f"{number(open_)}; at most {number(FLEET * 13)}",
            "transactional IDs": number(FLEET) if exactly else "0",
            f"producer states, {PARTITIONS} partitions": number(states),
            "producer IDs in a day": number(FLEET * max(rate / FLEET * DAY / 32_766, 1)) if exactly else number(FLEET),
            "results topic, a day": size(s["result_bytes_per_result"] * rate * DAY),
            "__transaction_state, written a second": size(s["transaction_state_bytes_per_transaction"] * rate),
            "watermarks, written a second": size(s["watermark_bytes_per_transaction"] * rate),
            "watermarks compacted, markers kept a day": size(markers + FLEET * s["watermark_bytes_per_transaction"])
            if exactly
            else "0 B",
            "watermarks compacted, markers kept 60 s, lag 600 s": size(
                s["watermark_bytes_per_transaction"] * (rate * 600 + FLEET) + MARKER_BYTES * rate * 60
            )
            if exactly
            else "0 B",
            "a new outbox reads the markers of a day in, s": number(markers / (s["foreign_watermark_bytes"] / reading))
            if exactly
            else "0",
        }
        for title, cell in cells.items():
            rows.setdefault(title, []).append(cell)
    return table(
        ["", *(f"{mode}, {name}" for mode, name, _ in cases)], [[title, *cells] for title, cells in rows.items()]
    )


def main(source: str, document: str) -> None:
    with open(source) as file:
        run = json.load(file)
    samples = run["samples"]
    modes = list(dict.fromkeys(s["delivery"] for s in samples))

    def cell(mode: str, field: str, factor: float) -> str:
        value = statistics.median(s[field] for s in samples if s["delivery"] == mode) * factor
        return number(value) if value else "0"

    rows = [[title, *(cell(mode, field, factor) for mode in modes)] for title, field, factor in ROWS]
    load = " and ".join(number(s["load_average"]) for s in samples)
    write_parts(
        document,
        {
            "fleet run": f"{run['date']}, {samples[0]['sidecars']} sidecars beside one broker on {run['cpus']} CPUs, "
            f"{run['results_per_second_each']:g} result/s each for {run['seconds_per_run']:g} s, then "
            f"{run['seconds_idle']:g} s idle; one run each, load average before it {load}.",
            "fleet": table(["", *modes], rows),
            "paper": paper({s["delivery"]: s for s in samples}),
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
