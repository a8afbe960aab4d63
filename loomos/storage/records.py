"""Reading a job's records: metrics, logs and events, which several nodes write at a time.

Each node of an attempt owns a stream of chunks (`loomos.storage.chunks`). Readers get one sequence:
attempt by attempt, and within an attempt by time. How far they have come is a `Position`, which
counts the chunks of each stream: one key alone would pass over what a slower node writes later.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from loomos.errors import InvalidInput
from loomos.storage import Store
from loomos.storage.chunks import Record
from loomos.storage.layout import chunk_key

READ_AT_A_TIME = 8
"""Chunks fetched side by side: one alone is a round trip for every second of a run."""
_POSITION = re.compile(r"g(\d{6,12}):((?:n\d{1,9}=\d{1,10})(?:,n\d{1,9}=\d{1,10})*)")
_CHUNK = re.compile(r"(\d{10})\.jsonl$")


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a reader has come: all of earlier attempts, and some chunks of the newest one."""

    generation: int = 0
    """The newest attempt seen."""
    read: Mapping[str, int] = field(default_factory=dict)
    """How many chunks of its streams, by writer."""

    def __str__(self) -> str:
        if not self.read:
            return ""
        parts = ",".join(f"{writer}={count}" for writer, count in sorted(self.read.items()))
        return f"g{self.generation:06d}:{parts}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` made of one; the empty text is the beginning.

        Raises:
            InvalidInput: it is no such thing.
        """
        if not text:
            return cls()
        match = _POSITION.fullmatch(text) if text.isascii() else None
        if match is None:
            raise InvalidInput("after: give a `next_cursor` or an event id that the gateway gave")
        pairs = (part.split("=") for part in match[2].split(","))
        return cls(generation=int(match[1]), read={writer: int(count) for writer, count in pairs})


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which records a reader wants."""

    generation: int | None = None
    """Of this attempt only."""
    rank: int | None = None
    """Lines of this rank only."""
    since: float | None = None
    """Written at this time or later, in seconds since 1970."""
    every: int = 1
    """Steps that are a multiple of this; what is no step is kept."""

    def keeps(self, record: Record) -> bool:
        """Whether a record is wanted."""
        if self.rank is not None and not str(record.get("source", "")).startswith(
            f"rank {self.rank} "
        ):
            return False
        if self.since is not None and record["at"] < self.since:
            return False
        return record.get("kind") != "step" or record["step"] % self.every == 0


ALL = Wanted()


def read_records(
    store: Store, prefix: str, after: Position, wanted: Wanted = ALL, most: int | None = None
) -> tuple[list[Record], Position]:
    """Records after a position, and how far that is.

    Args:
        store: where they are.
        prefix: of the metrics, logs or events of a job.
        after: where to go on.
        wanted: which.
        most: about how many; what was begun is finished.

    Returns:
        The records, and the position after them. A position that has not moved means the end.
    """
    found: list[Record] = []
    position = after
    for generation in _generations(store, prefix):
        if generation < position.generation or (most is not None and len(found) >= most):
            continue
        if generation > position.generation:
            position = Position(generation=generation)
        records, position = _read_generation(
            store, prefix, position, wanted, None if most is None else most - len(found)
        )
        found += records
    return found, position


def read_newest(
    store: Store, prefix: str, wanted: Wanted, most: int
) -> tuple[list[Record], Position]:
    """The newest `most` records, oldest first, and the position after the last of all.

    Streams are read from their ends, so that this costs as much as it gives and no more.
    """
    found: list[Record] = []
    end = Position()
    for generation in reversed(_generations(store, prefix)):
        keys = {
            writer: _keys(store, prefix, generation, writer, 0)
            for writer in _writers(store, prefix, generation)
        }
        if not end.read:
            counts = {writer: _count(listed) for writer, listed in keys.items() if listed}
            end = Position(generation=generation, read=counts)
        if wanted.generation not in (None, generation):
            continue
        of_attempt: list[Record] = []
        for listed in keys.values():
            of_attempt += _newest_of_stream(store, listed, wanted, most - len(found))
        of_attempt.sort(key=_time)
        found = of_attempt[max(0, len(of_attempt) - (most - len(found))) :] + found
        is_older = wanted.since is not None and not of_attempt
        if len(found) >= most or wanted.generation == generation or is_older:
            break
    return found, end


def _read_generation(
    store: Store, prefix: str, position: Position, wanted: Wanted, most: int | None
) -> tuple[list[Record], Position]:
    """What is new of one attempt, merged by time."""
    read = dict(position.read)
    is_wanted = wanted.generation in (None, position.generation)
    found: list[Record] = []
    with ThreadPoolExecutor(READ_AT_A_TIME) as pool:
        streams: dict[str, Iterator[list[Record]]] = {}
        for writer in _writers(store, prefix, position.generation):
            keys = _keys(store, prefix, position.generation, writer, read.get(writer, 0))
            if is_wanted:
                streams[writer] = _fetched(store, keys, pool)
            elif keys:
                read[writer] = _count(keys)
        heap: list[tuple[float, str, list[Record]]] = []
        for writer, stream in streams.items():
            heap += _next(writer, stream)
        heapq.heapify(heap)
        while heap and (most is None or len(found) < most):
            _, writer, records = heapq.heappop(heap)
            found += [record for record in records if wanted.keeps(record)]
            read[writer] = read.get(writer, 0) + 1
            for item in _next(writer, streams[writer]):
                heapq.heappush(heap, item)
    found.sort(key=_time)
    return found, Position(generation=position.generation, read=read)


def _next(writer: str, stream: Iterator[list[Record]]) -> list[tuple[float, str, list[Record]]]:
    records = next(stream, None)
    return [] if records is None else [(_time(records[0]) if records else 0.0, writer, records)]


def _newest_of_stream(store: Store, keys: Sequence[str], wanted: Wanted, most: int) -> list[Record]:
    """The newest records of one stream, read from its end."""
    found: list[Record] = []
    with ThreadPoolExecutor(READ_AT_A_TIME) as pool:
        for records in _fetched(store, keys[::-1], pool):
            found = [record for record in records if wanted.keeps(record)] + found
            is_older = wanted.since is not None and records and _time(records[0]) < wanted.since
            if len(found) >= most or is_older:
                break
    return found[max(0, len(found) - most) :]


def _fetched(store: Store, keys: Sequence[str], pool: ThreadPoolExecutor) -> Iterator[list[Record]]:
    """The chunks of these keys in order, the next few fetched meanwhile."""
    waiting: list[Future[list[Record]]] = []
    left = iter(keys)
    while True:
        for key in itertools.islice(left, READ_AT_A_TIME - len(waiting)):
            waiting.append(pool.submit(_read, store, key))
        if not waiting:
            return
        yield waiting.pop(0).result()


def _read(store: Store, key: str) -> list[Record]:
    return [json.loads(line) for line in store.get(key).decode().splitlines()]


def _generations(store: Store, prefix: str) -> list[int]:
    names = (child for child in store.children(prefix) if re.fullmatch(r"g\d{6,}/", child))
    return sorted(int(name[1:-1]) for name in names)


def _writers(store: Store, prefix: str, generation: int) -> list[str]:
    children = store.children(f"{prefix}g{generation:06d}/")
    return [child.rstrip("/") for child in children if child.endswith("/")]


def _keys(store: Store, prefix: str, generation: int, writer: str, start: int) -> list[str]:
    """Keys of a stream's chunks from a number on, in order."""
    folder = chunk_key(prefix, generation, writer, 0).rpartition("/")[0] + "/"
    after = chunk_key(prefix, generation, writer, start - 1) if start else ""
    return [item.key for item in store.objects(folder, after)]


def _count(keys: Sequence[str]) -> int:
    match = _CHUNK.search(keys[-1])
    return int(match[1]) + 1 if match else len(keys)


def _time(record: Record) -> float:
    return float(record.get("at", 0.0))
