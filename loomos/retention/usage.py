"""What takes how much of the store."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from loomos.jobs.retention import StorageUsage, UsedByClass
from loomos.storage import Store

SAID_EVERY = 10_000
FRESH_S = 60.0


def class_of(key: str) -> str:
    """The class that an object counts for: its folder, and within a job what it is of the job."""
    parts = key.split("/")
    if parts[0] == "jobs" and len(parts) > 3:
        return f"job {parts[2]}"
    if parts[0] == "jobs":
        return "job state" if parts[-1] == "state" else "job plans"
    if parts[0] == "endpoints" and len(parts) > 3:
        return f"endpoint {parts[2]}"
    if parts[0] == "verifications":
        return "answers" if parts[1] == "shards" else "verifications"
    if parts[0] == "continual" and len(parts) > 3:
        return f"continual {parts[2]}"
    return parts[0]


def usage_by_class(store: Store, say: Callable[[str], None] = lambda _: None) -> StorageUsage:
    """Count every object of a store; it takes as long as listing them does.

    Args:
        store: what is counted.
        say: told now and then how far it is.
    """
    objects, sizes = Counter[str](), Counter[str]()
    for number, item in enumerate(store.objects("")):
        if number % SAID_EVERY == 0:
            say(f"{number} objects")
        name = class_of(item.key)
        objects[name] += 1
        sizes[name] += item.size_bytes
    return StorageUsage(
        classes=[
            UsedByClass(what=name, objects=objects[name], size_bytes=size)
            for name, size in sizes.most_common()
        ]
    )


class UsageCounter:
    """Counts at most once at a time and once a minute, however many ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counting = asyncio.Lock()
        self._counted: StorageUsage | None = None
        self._at = 0.0

    async def get(self) -> StorageUsage:
        """What takes how much, as it was at most `FRESH_S` ago."""
        async with self._counting:
            if self._counted is None or time.monotonic() - self._at > FRESH_S:
                self._counted = await asyncio.to_thread(usage_by_class, self._store)
                self._at = time.monotonic()
            return self._counted
