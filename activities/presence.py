"""A node's heartbeat: one activity that lasts as long as the worker does."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import psutil
from temporalio import activity

from loomos.jobs.cluster import NodeInfo
from loomos.jobs.message import Empty

INTERVAL_S = 2.0
"""Time between heartbeats at least; in a large cluster a fifth of the silence that is allowed."""


class PresenceActivities:
    """The activity that the `Cluster` workflow keeps on each node."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.is_held = asyncio.Event()
        self._leaving = asyncio.Event()
        self._holds = 0

    def leave(self) -> None:
        """End the activity in order: the cluster marks the node lost at once."""
        self._leaving.set()

    @activity.defn
    async def hold_node(self, info: NodeInfo) -> Empty:
        """Heartbeat with the node's load until it leaves."""
        # After a new run of the cluster both runs' activities are here for a moment.
        self._holds += 1
        self.is_held.set()
        silence = activity.info().heartbeat_timeout
        interval_s = max(INTERVAL_S, silence.total_seconds() / 5 if silence else 0)
        try:
            while not self._leaving.is_set():
                memory = psutil.virtual_memory()
                activity.heartbeat(
                    {
                        "cpu_percent": psutil.cpu_percent(),
                        "memory_percent": memory.percent,
                        "memory_available_bytes": memory.available,
                        "storage_free_bytes": shutil.disk_usage(self._scratch).free,
                    }
                )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await self._leaving.wait()
        finally:
            self._holds -= 1
            if not self._holds:
                self.is_held.clear()
        return Empty()
