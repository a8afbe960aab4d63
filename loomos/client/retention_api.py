"""What takes how much, and the freeing of what nobody needs: `client.retention`."""

from __future__ import annotations

import asyncio

from loomos.client.transport import Transport
from loomos.errors import Unavailable
from loomos.jobs.retention import CollectionReport, CollectionStatus, StorageUsage

USAGE_TIMEOUT_S = 3600.0
POLL_S = 0.3


class RetentionApi:
    """The store's housekeeping, through a gateway."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def usage(self) -> StorageUsage:
        """What takes how much of the store, by class."""
        return await self._transport.call("GET", "/storage", StorageUsage, timeout=USAGE_TIMEOUT_S)

    async def start(self, *, dry_run: bool = False) -> CollectionStatus:
        """Start a collection of garbage."""
        return await self._transport.call(
            "POST", "/gc", CollectionStatus, json={"dry_run": dry_run}
        )

    async def get(self, collection_id: str) -> CollectionStatus:
        """A collection.

        Raises:
            NotFound: there is none of this id.
        """
        return await self._transport.call("GET", f"/gc/{collection_id}", CollectionStatus)

    async def collect(self, *, dry_run: bool = False) -> CollectionReport:
        """Collect garbage and wait for the report.

        Args:
            dry_run: only say what would be freed.

        Raises:
            Unavailable: the collection was ended before it was over.
        """
        found = await self.start(dry_run=dry_run)
        while found.is_running:
            await asyncio.sleep(POLL_S)
            found = await self.get(found.collection_id)
        if found.report is None:
            raise Unavailable(f"collection {found.collection_id} was ended; Temporal says why")
        return found.report
