"""Measure the waiting side: foreign records per second, and the memory of 2 000 waits.

    python bench/waiting.py fill --brokers 127.0.0.1:9092 --topic foreign --records 500000
    python bench/waiting.py skip --brokers 127.0.0.1:9092 --topic foreign
    python bench/waiting.py waits --brokers 127.0.0.1:9092 --topic many

The last two print one JSON object each. ``all.py`` starts a Kafka, fills a topic, and runs them by turns,
each in a new process, so that memory is that of one of them alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

EVENT_BYTES = 1024
MIB = 1 << 20
WORDS = 6000


def memory() -> float:
    """Return what this process has in memory now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


BARE = memory()  # the interpreter with the standard library alone

from confluent_kafka import Producer  # noqa: E402

from workflow_results import hub  # noqa: E402
from workflow_results.poller import AsyncWorkflowResultPoller, WorkflowResultPoller  # noqa: E402
from workflow_results.result import ResultTimeout  # noqa: E402

IMPORTED = memory()


def result(correlation_id: object) -> bytes:
    """Make a result record's value, as the sidecar writes it, of about 1 KiB: words, which compress as text does."""
    fields: dict[str, Any] = {
        "event_type": "workflow.result", "event_id": str(uuid4()), "correlation_id": str(correlation_id),
        "workflow_id": "order-review", "workflow_run_id": "run-1", "result": {"text": ""}, "status": "success",
        "timestamp": "2026-01-02T03:04:05.678Z", "error": None,
    }  # fmt: skip
    left = EVENT_BYTES - len(json.dumps(fields))
    text = " ".join(f"word{random.randrange(WORDS)}" for _ in range(left // 7))
    fields["result"]["text"] = text[:left]
    return json.dumps(fields).encode()


def publish(brokers: str, topic: str, pairs: Any) -> None:
    """Publish records, as (key, value)."""
    settings = {"bootstrap.servers": brokers, "linger.ms": 50, "compression.type": "lz4", "acks": "all"}
    producer = Producer(settings)
    for key, value in pairs:
        while True:
            try:
                producer.produce(topic, value, str(key))
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0, "Kafka has not taken all records"


def fill(brokers: str, topic: str, records: int) -> None:
    """Publish foreign results."""
    values = [result(uuid4()) for _ in range(1000)]  # what is in them is of no account, their keys differ
    publish(brokers, topic, ((uuid4(), values[n % len(values)]) for n in range(records)))


def records_read() -> int:
    """Count what the hub has read; when a result is found, not all partitions need have been read to their ends."""
    return sum(each.records for each in hub._hubs.values())


def skip(brokers: str, topic: str) -> dict[str, Any]:
    """Look for a result that lies behind all the foreign ones."""
    wanted = uuid4()
    publish(brokers, topic, [(wanted, result(wanted))])
    poller = WorkflowResultPoller(brokers, topic)
    with suppress(ResultTimeout):  # so that the hub is at work
        poller.poll_for_result(uuid4(), since=timedelta(minutes=-10), timeout=1)
    base, before, began, cpu = memory(), records_read(), time.monotonic(), time.process_time()
    poller.poll_for_result(wanted, since=timedelta(hours=1), timeout=120)
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    read = records_read() - before
    return {
        "records": read,
        "foreign_per_second": read / wall,
        "foreign_per_cpu_second": read / cpu,
        "memory_beyond_a_hub_at_rest_mib": memory() - base,
    }


async def hold(brokers: str, topic: str, waits: int) -> dict[str, Any]:
    """Hold many waits at once, then publish all their results."""
    poller, ids = AsyncWorkflowResultPoller(brokers, topic), [uuid4() for _ in range(waits)]
    base = memory()
    position = await poller.mark()
    tasks = [asyncio.create_task(poller.poll_for_result(i, position=position)) for i in ids]
    with suppress(ResultTimeout):  # the hub takes waits in their order: when it has read for this one, it has them all
        await poller.poll_for_result(uuid4(), position=position, timeout=3)
    held, threads = memory(), threading.active_count()
    began = time.monotonic()
    await asyncio.to_thread(publish, brokers, topic, [(i, result(i)) for i in ids])
    await asyncio.gather(*tasks)
    return {
        "waits": waits,
        "bare_python_mib": BARE,
        "imported_mib": IMPORTED,
        "total_mib": held,
        "increment_mib": held - base,
        "answered_seconds": time.monotonic() - began,
        "threads": threads,
    }


def main() -> None:
    """Run one of them."""
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("what", choices=["fill", "skip", "waits"])
    flags.add_argument("--brokers", required=True)
    flags.add_argument("--topic", required=True)
    flags.add_argument("--records", type=int, default=500_000, help="to fill the topic with")
    flags.add_argument("--waits", type=int, default=2000)
    given = flags.parse_args()
    if given.what == "skip":
        print(json.dumps(skip(given.brokers, given.topic)))
    elif given.what == "waits":
        print(json.dumps(asyncio.run(hold(given.brokers, given.topic, given.waits))))
    else:
        fill(given.brokers, given.topic, given.records)


if __name__ == "__main__":
    main()
