"""Sends results with aiokafka's send_and_wait, N at a time, and prints what it saw as JSON."""

import argparse
import asyncio
import json
import os
import resource
import time
import uuid

from aiokafka import AIOKafkaProducer


def payload(size: int) -> tuple[bytes, bytes]:
    """Returns the key and the value of a result of size bytes, with IDs of its own."""
    event_id, correlation_id = str(uuid.uuid4()), str(uuid.uuid4())
    head = (
        f'{{"event_id":"{event_id}","correlation_id":"{correlation_id}","workflow_id":"bench",'
        '"workflow_run_id":"bench-1","status":"success","result":{"text":"'
    )
    return correlation_id.encode(), (head + "x" * (size - len(head) - 3) + '"}}').encode()


def cpu_seconds() -> float:
    """Returns what this process has used, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_mib() -> float:
    """Returns the resident memory of this process (proc(5), statm)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def send(producer: AIOKafkaProducer, topic: str, size: int, end: float, latencies: list[float]) -> None:
    """Sends one result after the other until end (of perf_counter) and notes how long each took, in seconds."""
    while (start := time.perf_counter()) < end:
        key, value = payload(size)
        await producer.send_and_wait(topic, value, key)
        latencies.append(time.perf_counter() - start)


async def main(args: argparse.Namespace) -> None:
    """Wakes the producer up, runs the load, and prints what it saw."""
    latencies: list[float] = []
    async with AIOKafkaProducer(bootstrap_servers=args.brokers, acks="all", enable_idempotence=True) as producer:
        await send(producer, args.topic, args.size, time.perf_counter() + 0.1, [])  # metadata, producer ID, connections
        cpu, start = cpu_seconds(), time.perf_counter()
        end = start + args.seconds
        await asyncio.gather(*(send(producer, args.topic, args.size, end, latencies) for _ in range(args.concurrent)))
        seconds = time.perf_counter() - start
    latencies.sort()
    print(
        json.dumps(
            {
                "results": len(latencies),
                "seconds": seconds,
                "p50_ms": latencies[len(latencies) // 2] * 1000,
                "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
                "cpu_us_per_result": (cpu_seconds() - cpu) / len(latencies) * 1e6,
                "rss_mib": resident_mib(),
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--concurrent", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--size", type=int, required=True)
    asyncio.run(main(parser.parse_args()))
