"""Durable appends against bare inserts into the same table and against `eventsourcing`.

Per database (SQLite in WAL mode with synchronous=FULL; PostgreSQL with its defaults): one event
after the other, 64 producers at once, batches of 1,000. The contestants take turns, three rounds
each; medians are given. A bare insert writes finished rows through the plain driver (`sqlite3`,
`asyncpg`), and by SQLAlchemy Core. `eventsourcing` (its mapper and recorder) and LoomDB do all
their work, from the dict to the acknowledged event, and are called from asyncio, one call per
append; the former has no async interface, so its calls go to a thread.

Then, on a SQLite ledger of 1,000,000 entries: the time of a proof, and the audit's rate.

Goals: batched >= 0.6 of bare; ahead of `eventsourcing` in every row; a proof <= 1 ms; >= 150,000
audited entries per CPU-second.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from eventsourcing.domain import DomainEvent
from eventsourcing.persistence import (
    ApplicationRecorder,
    DatetimeAsISO,
    EventStore,
    JSONTranscoder,
    Mapper,
    UUIDAsHex,
)
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore
from sqlalchemy import create_engine, event, make_url

from loomos.loomdb import LoomDB, NewEvent
from loomos.loomdb.backend import EventRow, event_row
from loomos.loomdb.events import prepare
from loomos.loomdb.merkle import leaf_hash, verify_inclusion
from loomos.loomdb.postgres import COLUMNS
from loomos.loomdb.schema import events
from tests.postgres import Postgres, running_postgres

NEEDS_STACK = False
ROUNDS = 3
SINGLE, CONCURRENT, BATCHES, BATCH, PRODUCERS = 300, 6_400, 10, 1_000, 64
LEAVES = 1_000_000
PROOFS = 2_000

Run = Callable[[], Awaitable[int]]
"""Appends some events and says how many."""


def data(n: int) -> dict[str, Any]:
    """What each event says; its entry has about 290 bytes."""
    return {"job_id": "job-0001", "note": "x" * 120, "shards": 4, "step": n}


def rows(start: int, count: int) -> list[EventRow]:
    """Finished rows, as LoomDB would write them."""
    new = [("bench", NewEvent(event_type="tick", data=data(n))) for n in range(count)]
    made = prepare(new, None, None)
    return [event_row(start + i, start + i + 1, event) for i, event in enumerate(made)]


# --- contestants --------------------------------------------------------------------------------


def loomdb(db: LoomDB) -> dict[str, Run]:
    """From dicts to acknowledged leaves."""

    async def single() -> int:
        for n in range(SINGLE):
            await db.append("single", [NewEvent(event_type="tick", data=data(n))])
        return SINGLE

    async def concurrent() -> int:
        async def produce(number: int) -> None:
            for n in range(CONCURRENT // PRODUCERS):
                await db.append(f"s{number}", [NewEvent(event_type="tick", data=data(n))])

        await asyncio.gather(*(produce(number) for number in range(PRODUCERS)))
        return CONCURRENT

    async def batched() -> int:
        for _ in range(BATCHES):
            await db.append(
                "batch", [NewEvent(event_type="tick", data=data(n)) for n in range(BATCH)]
            )
        return BATCHES * BATCH

    return {"single": single, "64 producers": concurrent, "batch of 1,000": batched}


class BareSQLite:
    """Rows into a table like `events`, by the standard library's driver."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA synchronous=FULL")
        self._core = create_engine(f"sqlite:///{path}")
        event.listen(self._core, "connect", lambda c, _: c.execute("PRAGMA synchronous=FULL"))
        self._size = 0

    def core(self) -> dict[str, Run]:
        """The same by SQLAlchemy Core."""

        def insert() -> int:
            for start in range(0, len(self._dicts), BATCH):
                with self._core.begin() as connection:
                    connection.execute(events.insert(), self._dicts[start : start + BATCH])
            self._size += len(self._dicts)
            self._rows, self._dicts = [], []
            return BATCHES * BATCH

        return {"batch of 1,000": lambda: asyncio.to_thread(insert)}

    def runs(self) -> dict[str, Run]:
        """One row per commit, and 1,000."""

        async def single() -> int:
            return await asyncio.to_thread(self._insert, SINGLE, 1)

        async def batched() -> int:
            return await asyncio.to_thread(self._insert, BATCHES, BATCH)

        return {"single": single, "batch of 1,000": batched}

    def prepare(self, name: str) -> None:
        """Finish the rows before the clock runs."""
        self._rows = rows(self._size, SINGLE if name == "single" else BATCHES * BATCH)
        names = [column.name for column in events.columns]
        self._dicts = [dict(zip(names, row, strict=True)) for row in self._rows]

    def _insert(self, commits: int, count: int) -> int:
        for start in range(0, commits * count, count):
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self._rows[start : start + count],
            )
            self._connection.execute("COMMIT")
        self._size += commits * count
        self._rows, self._dicts = [], []
        return commits * count


class BarePostgres:
    """Rows into a table like `events`, by asyncpg: INSERT, one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._size = 0

    def runs(self) -> dict[str, Run]:
        """One row per commit, and 1,000."""

        async def single() -> int:
            return await self._insert(SINGLE, 1)

        async def batched() -> int:
            return await self._insert(BATCHES, BATCH)

        return {"single": single, "batch of 1,000": batched}

    def prepare(self, name: str) -> None:
        """Finish the rows before the clock runs."""
        self._rows = rows(self._size, SINGLE if name == "single" else BATCHES * BATCH)

    async def _insert(self, commits: int, count: int) -> int:
        marks = ", ".join(f"${i}" for i in range(1, len(COLUMNS) + 1))
        for start in range(0, commits * count, count):
            async with self._connection.transaction():
                await self._connection.executemany(
                    f"INSERT INTO events VALUES ({marks})", self._rows[start : start + count]
                )
        self._size += commits * count
        return commits * count


class Ticked(DomainEvent):
    """An event of the peer."""

    data: dict[str, Any]


def eventsourcing(recorder: ApplicationRecorder) -> dict[str, Run]:
    """From dicts to acknowledged rows, through the package's own mapper and recorder."""
    transcoder = JSONTranscoder()
    transcoder.register(UUIDAsHex())
    transcoder.register(DatetimeAsISO())
    store: EventStore[uuid.UUID] = EventStore(Mapper(transcoder), recorder)

    def put(stream: uuid.UUID, commit: int, count: int) -> None:
        store.put(
            [
                Ticked(
                    originator_id=stream,
                    originator_version=commit * count + i + 1,
                    timestamp=datetime.now(UTC),
                    data=data(i),
                )
                for i in range(count)
            ]
        )

    async def insert(commits: int, count: int) -> int:
        stream = uuid.uuid4()
        for commit in range(commits):
            await asyncio.to_thread(put, stream, commit, count)
        return commits * count

    async def single() -> int:
        return await insert(SINGLE, 1)

    async def concurrent() -> int:
        share = CONCURRENT // PRODUCERS // 4
        return sum(await asyncio.gather(*(insert(share, 1) for _ in range(PRODUCERS))))

    async def batched() -> int:
        return await insert(BATCHES, BATCH)

    return {"single": single, "64 producers": concurrent, "batch of 1,000": batched}


# --- measuring ----------------------------------------------------------------------------------


async def compare(
    contestants: dict[str, dict[str, Run]], bare: BareSQLite | BarePostgres
) -> dict[str, Any]:
    """Events per second, medians of rounds in turn, and ratios."""
    found: dict[str, Any] = {}
    for name in ("single", "64 producers", "batch of 1,000"):
        rates: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for who, runs in contestants.items():
                if name not in runs:
                    continue
                if who.startswith("bare"):
                    bare.prepare(name)
                began = time.perf_counter()
                count = await runs[name]()
                rates.setdefault(who, []).append(count / (time.perf_counter() - began))
        medians = {who: statistics.median(values) for who, values in rates.items()}
        ratios = {
            f"over {who}": round(medians["loomdb"] / rate, 2)
            for who, rate in medians.items()
            if who != "loomdb"
        }
        found[name] = {who: round(rate) for who, rate in medians.items()} | ratios
        print(f"  {name}: {found[name]}", file=sys.stderr)
    return found


async def on_sqlite(folder: Path) -> dict[str, Any]:
    """All contestants on SQLite files of one folder."""
    for name in ("loom", "bare"):
        async with LoomDB(f"sqlite:///{folder / name}.db"):
            pass
    bare = BareSQLite(folder / "bare.db")
    recorder = SQLiteApplicationRecorder(SQLiteDatastore(str(folder / "peer.db"), pool_size=5))
    recorder.create_table()
    async with LoomDB(f"sqlite:///{folder / 'loom.db'}") as db:
        return await compare(
            {
                "loomdb": loomdb(db),
                "bare": bare.runs(),
                "bare by SQLAlchemy": bare.core(),
                "eventsourcing": eventsourcing(recorder),
            },
            bare,
        )


async def on_postgres(server: Postgres) -> dict[str, Any]:
    """All contestants on databases of one server."""
    urls = {name: server.create(name) for name in ("loom", "bare", "peer")}
    async with LoomDB(urls["bare"]):
        pass
    bare = BarePostgres(await asyncpg.connect(urls["bare"]))
    peer = make_url(urls["peer"])
    recorder = PostgresApplicationRecorder(
        PostgresDatastore(
            dbname="peer",
            host=str(peer.host),
            port=str(peer.port),
            user=str(peer.username),
            password="",
            pool_size=16,
            max_overflow=0,
        )
    )
    recorder.create_table()
    try:
        async with LoomDB(urls["loom"]) as db:
            return await compare(
                {
                    "loomdb": loomdb(db),
                    "bare": bare.runs(),
                    "eventsourcing": eventsourcing(recorder),
                },
                bare,
            )
    finally:
        recorder.datastore.close()


async def at_a_million(folder: Path) -> dict[str, Any]:
    """Proof times and the audit's rate on a ledger of a million entries."""
    chance = random.Random(1)
    async with LoomDB(f"sqlite:///{folder / 'million.db'}") as db:
        began = time.perf_counter()
        for start in range(0, LEAVES, 2_000):
            await db.append(
                f"s{start % 50}",
                [NewEvent(event_type="tick", data=data(n)) for n in range(start, start + 2_000)],
            )
        filled_s = time.perf_counter() - began
        print(f"  filled in {filled_s:.0f} s", file=sys.stderr)
        root = await db.ledger.root(LEAVES)
        wall, cpu = [], time.process_time()
        for _ in range(PROOFS):
            position = chance.randrange(LEAVES)
            began = time.perf_counter()
            proof = await db.ledger.inclusion_proof(position, LEAVES)
            wall.append((time.perf_counter() - began) * 1000)
            if position % 20 == 0:
                leaf = leaf_hash((await db.event_at(position)).entry.encode())
                verify_inclusion(leaf, position, LEAVES, proof, root)
        proof_cpu_ms = (time.process_time() - cpu) / PROOFS * 1000
        consistency = []
        for _ in range(PROOFS // 10):
            began = time.perf_counter()
            await db.ledger.consistency_proof(chance.randrange(1, LEAVES), LEAVES)
            consistency.append((time.perf_counter() - began) * 1000)
        cpu, began = time.process_time(), time.perf_counter()
        report = await db.audit()
        audit_cpu_s, audit_s = time.process_time() - cpu, time.perf_counter() - began
        assert report.ok
        assert report.size == LEAVES
    return {
        "leaves": LEAVES,
        "inclusion_p50_ms": round(statistics.median(wall), 3),
        "inclusion_p99_ms": round(statistics.quantiles(wall, n=100)[98], 3),
        "inclusion_cpu_ms": round(proof_cpu_ms, 3),
        "consistency_p50_ms": round(statistics.median(consistency), 3),
        "audit_entries_per_cpu_s": round(LEAVES / audit_cpu_s),
        "audit_s": round(audit_s, 1),
    }


async def measure(stack: object) -> dict[str, Any]:
    """All of it; needs no stack."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        print("sqlite", file=sys.stderr)
        sqlite = await on_sqlite(Path(folder))
        (Path(folder) / "pg").mkdir()
        with running_postgres(Path(folder) / "pg") as server:
            print("postgresql", file=sys.stderr)
            postgresql = await on_postgres(server)
        print("a million", file=sys.stderr)
        million = await at_a_million(Path(folder))
    return {"sqlite": sqlite, "postgresql": postgresql, "million": million}
