"""Both clients behind one face, so that one test tries each."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from workflow_results import Receipt, SidecarClient
from workflow_results.aio import AsyncSidecarClient


def about(**more: Any) -> dict[str, Any]:
    """What every result has."""
    return {"correlation_id": str(uuid4()), "workflow_id": "w", "workflow_run_id": "r", **more}


class SyncDriver:
    def __init__(self, path: str, **options: Any) -> None:
        self.client = SidecarClient(path, **options)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, method)(*args, **kwargs)

    def publish_at_once(self, events: list[dict[str, Any]]) -> list[Receipt]:
        with ThreadPoolExecutor(len(events)) as pool:
            return list(pool.map(lambda event: self.client.publish(**event), events))

    def close(self) -> None:
        self.client.close()


class AsyncDriver:
    def __init__(self, path: str, **options: Any) -> None:
        self.client = AsyncSidecarClient(path, **options)
        self._runner = asyncio.Runner()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._runner.run(getattr(self.client, method)(*args, **kwargs))

    def publish_at_once(self, events: list[dict[str, Any]]) -> list[Receipt]:
        async def publish() -> list[Receipt]:
            return await asyncio.gather(*(self.client.publish(**event) for event in events))

        return self._runner.run(publish())

    def close(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


Driver = SyncDriver | AsyncDriver
DRIVERS: dict[str, type[SyncDriver] | type[AsyncDriver]] = {"blocking": SyncDriver, "asyncio": AsyncDriver}
