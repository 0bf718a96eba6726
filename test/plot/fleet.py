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
    ("idle: requests/s at the broker", "idle_requests_per_second", 1),
    ("idle: connections", "idle_connections", 1),
    ("a new sidecar publishes after, s", "newcomer_seconds", 1),
    ("the same with 200 000 more watermarks of others, s", "newcomer_seconds_foreign", 1),
]


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
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
