"""How requests went: one record each, appended to the store by the server that answered.

Records carry no text. What a rollout judges a canary by is in them, so that whoever judges needs
nothing from a server but the store. Cursors say where a reader is: the newest chunk read of each
folder, and under `READ_UP_TO` the hour up to which all folders have been read and left behind.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from loomos.storage import Store
from loomos.storage.chunks import Chunk, ChunkWriter, Record, read_chunks
from loomos.storage.layout import outcomes_prefix, samples_prefix

SLACK = timedelta(minutes=10)
"""How far clocks may differ, and how long a server may try to write a chunk."""
READ_UP_TO = ""
"""Name of the cursor that is an hour; no folder has this name."""

Cursors = dict[str, str]

_GENERATION = 0
_HOUR, _HOUR_DIGITS = "%Y%m%d%H", 10


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
    """Chunks of one server, by endpoint. `flush` blocks; `add` does not.

    The folder that a server writes into changes every hour: what readers must look at is what
    lives, however often servers were started before.
    """

    def __init__(self, store: Store, writer: str) -> None:
        self._store, self._writer = store, writer
        self._hour = ""
        self._chunks: dict[str, ChunkWriter] = {}
        self._lock = threading.Lock()

    def add(self, prefix: str, record: Record) -> None:
        """Keep a record until the next flush."""
        with self._lock:
            self._chunk(prefix).append(record)

    def outcome(self, endpoint: str, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.add(outcomes_prefix(endpoint), outcome.model_dump(mode="json", exclude_defaults=True))

    def sample(self, endpoint: str, sample: dict[str, Any]) -> None:
        """Keep a request with its answer."""
        self.add(samples_prefix(endpoint), sample)

    def flush(self) -> None:
        """Write what was kept."""
        with self._lock:
            self._turn(_hour(now()))
            chunks = list(self._chunks.values())
        for chunk in chunks:
            chunk.flush()

    def _turn(self, hour: str) -> None:
        """Go on in the folders of this hour, with what is not written yet."""
        if hour <= self._hour:
            return
        self._hour, before = hour, self._chunks
        self._chunks = {}
        for prefix, chunk in before.items():
            for record in chunk.take():
                self._chunk(prefix).append(record)

    def _chunk(self, prefix: str) -> ChunkWriter:
        if prefix not in self._chunks:
            self._hour = self._hour or _hour(now())
            writer = f"{self._hour}-{self._writer}"
            self._chunks[prefix] = ChunkWriter(self._store, prefix, _GENERATION, writer)
        return self._chunks[prefix]


# --- readers ------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Records that are new to a reader."""

    records: list[Record]
    """Oldest first within each folder."""
    cursors: Cursors
    """Where the reader is now."""


def read_new(store: Store, prefix: str, cursors: Cursors, limit: int = 20_000) -> Batch:
    """Records below a prefix that come after the cursors.

    It costs one listing, and one for each folder that may still grow: those of about an hour.

    Args:
        store: where they are.
        prefix: `outcomes_prefix` or `samples_prefix` of an endpoint.
        cursors: what the batch before gave.
        limit: about how many records to read at most.
    """
    found: list[Record] = []
    after, began = dict(cursors), now()
    for folder, chunk in chunks_after(store, prefix, cursors):
        found += chunk.records
        after[folder] = chunk.key
        if len(found) >= limit:
            return Batch(found, left_behind(after, began, folder))
    return Batch(found, left_behind(after, began))


def chunks_after(store: Store, prefix: str, cursors: Cursors) -> Iterator[tuple[str, Chunk]]:
    """Chunks below a prefix that come after the cursors, each with the folder that it is in."""
    for folder in _folders(store, prefix, cursors):
        for chunk in read_chunks(store, _root(prefix) + folder, cursors.get(folder, "")):
            yield folder, chunk


def left_behind(cursors: Cursors, began: datetime, unread: str = "") -> Cursors:
    """Cursors without the folders that are read and cannot grow any more.

    Args:
        cursors: where a reader is who went through the folders in their order.
        began: when it began to.
        unread: the first folder in which there is something left; empty if there is none.
    """
    hour = _hour(began - timedelta(hours=1) - SLACK)
    if unread:
        opened = datetime.strptime(unread[:_HOUR_DIGITS], _HOUR).replace(tzinfo=UTC)
        hour = min(hour, _hour(opened - timedelta(hours=1)))
    hour = max(hour, cursors.get(READ_UP_TO, ""))
    kept = {folder: key for folder, key in cursors.items() if folder[:_HOUR_DIGITS] > hour}
    return {READ_UP_TO: hour, **kept}


def read_between(store: Store, prefix: str, first: Cursors, last: Cursors) -> list[Record]:
    """Records that a reader has had on its way from some cursors to later ones."""
    found: list[Record] = []
    for folder in _folders(store, prefix, first):
        if not (folder in last or _is_past(folder, last)):
            continue
        for chunk in read_chunks(store, _root(prefix) + folder, first.get(folder, "")):
            if was_read(chunk.key, last):
                found += chunk.records
    return found


def find_ends(store: Store, prefix: str) -> Cursors:
    """Cursors behind everything that is there now."""
    ends = left_behind({}, now())
    for folder in _folders(store, prefix, ends):
        for item in store.objects(_root(prefix) + folder):
            ends[folder] = item.key
    return ends


def was_read(key: str, cursors: Cursors) -> bool:
    """Whether a reader at these cursors has had the chunk with this key."""
    folder = f"{key.rpartition('/')[0].rpartition('/')[2]}/"
    return _is_past(folder, cursors) or key <= cursors.get(folder, "")


def _root(prefix: str) -> str:
    return f"{prefix}g{_GENERATION:06d}/"


def _folders(store: Store, prefix: str, cursors: Cursors) -> Iterator[str]:
    """Folders that a reader may have something to read in."""
    hour = cursors.get(READ_UP_TO, "")
    names = store.children(_root(prefix), f"{hour}~" if hour else "")  # `~` sorts after all names
    yield from (name for name in names if name.endswith("/"))


def _is_past(folder: str, cursors: Cursors) -> bool:
    return folder[:_HOUR_DIGITS] <= cursors.get(READ_UP_TO, "")


def _hour(moment: datetime) -> str:
    return moment.strftime(_HOUR)
