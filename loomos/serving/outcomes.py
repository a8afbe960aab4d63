"""How requests went: one record each, appended to the store by the server that answered.

Records carry no text. What a rollout judges a canary by is in them, so that whoever judges needs
nothing from a server but the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from loomos.storage import Store
from loomos.storage.chunks import Chunk, ChunkWriter, Record, read_chunks
from loomos.storage.layout import outcomes_prefix, samples_prefix

_GENERATION = 0


class Outcome(BaseModel):
    """How one request went, or what a person thought of it."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    id: str
    """The request."""
    at: datetime
    """When it ended."""
    user: str
    """Hash of the sticky key."""
    arm: Literal["stable", "canary"]
    """Who answered."""
    version: str
    """With which version."""
    stage: str = ""
    """Stage of the rollout then."""
    is_shadow: bool = False
    """Nobody saw the answer."""
    is_counted: bool = True
    """False if the outcome says nothing of the arm, as when it stood in for the other."""
    assigned: Literal["stable", "canary"] | None = None
    """Arm that the split chose; none for a request that named a version."""
    status: int = 200
    """HTTP status."""
    latency_s: float = 0.0
    """From arrival to the last token."""
    first_token_s: float | None = None
    """From arrival to the first token."""
    tokens: int = 0
    """Tokens generated."""
    is_empty: bool = False
    """There was no text."""
    is_looping: bool = False
    """The text went round and round."""
    hits: list[str] = []
    """Detectors that found something."""
    score: int | None = None
    """A person's thumb: 1 up, -1 down. Such a record is about an earlier answer."""
    events: dict[str, bool] = {}
    """What a client says happened with an earlier answer, or did not."""


def hash_user(key: str) -> str:
    """What stands for a sticky key in records."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def now() -> datetime:
    """The time as records have it."""
    return datetime.now(UTC)


class RecordWriters:
    """Chunks of one server, by endpoint. `flush` blocks; `add` does not."""

    def __init__(self, store: Store, writer: str) -> None:
        self._store, self._writer = store, writer
        self._chunks: dict[str, ChunkWriter] = {}

    def add(self, prefix: str, record: Record) -> None:
        """Keep a record until the next flush."""
        if prefix not in self._chunks:
            self._chunks[prefix] = ChunkWriter(self._store, prefix, _GENERATION, self._writer)
        self._chunks[prefix].append(record)

    def outcome(self, endpoint: str, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.add(outcomes_prefix(endpoint), outcome.model_dump(mode="json", exclude_defaults=True))

    def sample(self, endpoint: str, sample: dict[str, Any]) -> None:
        """Keep a request with its answer."""
        self.add(samples_prefix(endpoint), sample)

    def flush(self) -> None:
        """Write what was kept."""
        for chunk in list(self._chunks.values()):
            chunk.flush()


class Batch(NamedTuple):
    """Records that are new to a reader."""

    records: list[Record]
    """Oldest first within each server."""
    cursors: dict[str, str]
    """Where the reader is now, by server."""


def read_new(store: Store, prefix: str, cursors: dict[str, str], limit: int = 20_000) -> Batch:
    """Records below a prefix that come after the cursors.

    Args:
        store: where they are.
        prefix: `outcomes_prefix` or `samples_prefix` of an endpoint.
        cursors: what the batch before gave.
        limit: about how many records to read at most.
    """
    root = f"{prefix}g{_GENERATION:06d}/"
    found: list[Record] = []
    after = dict(cursors)
    for writer in _writers(store, root):
        for chunk in read_chunks(store, root + writer, after.get(writer, "")):
            found += chunk.records
            after[writer] = chunk.key
            if len(found) >= limit:
                return Batch(found, after)
    return Batch(found, after)


def chunks_after(store: Store, prefix: str, cursors: dict[str, str]) -> Iterator[tuple[str, Chunk]]:
    """Chunks below a prefix that come after the cursors, each with the server that wrote it."""
    root = f"{prefix}g{_GENERATION:06d}/"
    for writer in _writers(store, root):
        for chunk in read_chunks(store, root + writer, cursors.get(writer, "")):
            yield writer, chunk


def _writers(store: Store, root: str) -> Iterator[str]:
    yield from (child for child in store.children(root) if child.endswith("/"))
