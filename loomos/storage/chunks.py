"""Append-only records in an object store: JSON lines in numbered chunks.

A writer owns the keys below one (generation, writer); its chunk numbers only grow, so listing
after the last key seen gives what is new. Writing a chunk again writes the same bytes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from loomos.storage import Store
from loomos.storage.layout import chunk_key

Record = dict[str, Any]


class ChunkWriter:
    """Collects records and writes them as one chunk when flushed."""

    def __init__(self, store: Store, prefix: str, generation: int, writer: str) -> None:
        self._store, self._prefix = store, prefix
        self._generation, self._writer = generation, writer
        self._records: list[Record] = []
        self._next = 0
        self._lock = threading.Lock()

    def append(self, record: Record) -> None:
        """Add a record to the chunk in the making."""
        with self._lock:
            self._records.append(record)

    def take(self) -> list[Record]:
        """Give up the records that are not written yet."""
        with self._lock:
            records, self._records = self._records, []
        return records

    def flush(self) -> None:
        """Write the collected records, if any; they stay collected if that fails."""
        records = self.take()
        if not records:
            return
        key = chunk_key(self._prefix, self._generation, self._writer, self._next)
        body = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        try:
            self._store.put(key, body.encode())
        except BaseException:
            with self._lock:
                self._records = records + self._records
            raise
        self._next += 1


class Chunk(NamedTuple):
    """A chunk as readers get it."""

    key: str
    """Its key; a cursor for what comes after."""
    records: list[Record]
    """Its records."""
    size_bytes: int
    """How long it is in the store."""


def read_chunks(store: Store, prefix: str, after: str = "") -> Iterator[Chunk]:
    """Chunks whose key sorts after `after`, oldest attempt first."""
    for item in store.objects(prefix, after):
        content = store.get(item.key)
        records = [json.loads(line) for line in content.decode().splitlines()]
        yield Chunk(item.key, records, len(content))
