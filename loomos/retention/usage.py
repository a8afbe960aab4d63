"""What takes how much of the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from loomos.jobs.retention import StorageUsage, UsedByClass
from loomos.storage import Store

SAID_EVERY = 10_000


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
