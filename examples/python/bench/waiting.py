"""Measure the waiting side: foreign records per second, and memory of 2 000 waits.

    make kafka && python bench/waiting.py

It starts a Kafka of its own. A run takes about a minute.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kafka import Kafka, result

from workflow_results.poller import AsyncWorkflowResultPoller, WorkflowResultPoller
from workflow_results.result import ResultTimeout

RECORDS = 1_000_000
WAITS = 2_000
MIB = 1 << 20


def memory() -> float:
    """Return what this process has in memory now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def fill(kafka: Kafka, topic: str) -> None:
    """Publish foreign results."""
    producer = kafka.producer(linger_ms=50, compression_type="lz4")
    value = result(uuid4())[1]
    for _ in range(RECORDS):
        while True:
            try:
                producer.produce(topic, value, str(uuid4()))
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def read_backwards(kafka: Kafka, topic: str) -> None:
    """Look for a result that lies behind all the foreign ones."""
    i = uuid4()
    kafka.publish(topic, result(i))
    with suppress(ResultTimeout):
        WorkflowResultPoller(kafka.addr, topic).poll_for_result(uuid4(), since=timedelta(), timeout=0.5)
    base = memory()
    began, cpu = time.monotonic(), time.process_time()
    WorkflowResultPoller(kafka.addr, topic).poll_for_result(i, since=timedelta(hours=1))
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    print(f"backfill: {RECORDS / wall:,.0f} foreign records/s ({RECORDS / cpu:,.0f} per second of CPU)")
    print(f"its memory, beyond that of a hub at rest: {memory() - base:+.1f} MiB")


def read_live(kafka: Kafka, topic: str) -> None:
    """Wait for a result that is published behind as many foreign ones during the wait."""
    i, poller = uuid4(), WorkflowResultPoller(kafka.addr, topic)
    position = poller.mark()
    thread = threading.Thread(target=fill, args=(kafka, topic))
    began = time.monotonic()
    thread.start()

    def then_publish() -> None:
        thread.join()
        kafka.publish(topic, result(i))

    threading.Thread(target=then_publish).start()
    poller.poll_for_result(i, position=position)
    wall = time.monotonic() - began
    print(f"live: {RECORDS / wall:,.0f} foreign records/s, while this process produced them")


async def wait_for_many(kafka: Kafka, topic: str) -> None:
    """Hold 2 000 waits at once, then publish all their results."""
    poller, ids = AsyncWorkflowResultPoller(kafka.addr, topic), [uuid4() for _ in range(WAITS)]
    base = memory()
    position = await poller.mark()
    tasks = [asyncio.create_task(poller.poll_for_result(i, position=position)) for i in ids]
    await asyncio.sleep(2)  # so that all are registered
    held = memory()
    began = time.monotonic()
    await asyncio.to_thread(kafka.publish, topic, *[result(i) for i in ids])
    await asyncio.gather(*tasks)
    wall = time.monotonic() - began
    print(f"{WAITS} waits: {held - base:.1f} MiB beyond the base of {base:.1f} MiB, hub included;")
    print(f"all answered {wall:.2f} s after the first result was sent; {threading.active_count()} threads")


def main() -> None:
    """Run all three."""
    kafka = Kafka()
    try:
        asyncio.run(wait_for_many(kafka, kafka.create_topic("many", 4)))
        topic = kafka.create_topic("foreign", 4)
        fill(kafka, topic)
        read_backwards(kafka, topic)
        read_live(kafka, topic)
    finally:
        kafka.close()


if __name__ == "__main__":
    main()
