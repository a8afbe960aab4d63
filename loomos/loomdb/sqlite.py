"""LoomDB on SQLite: one file, any number of processes of one machine."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool

from loomos.loomdb.backend import Backend, Bell, EventRow, T, original

BUSY_TIMEOUT_S = 30.0
LONGEST_BUSY_WAIT_S = 0.02
READERS = 4
CACHE_KIB = 32_768
INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
QUICK_S = 0.002
"""Transactions that usually take no longer are done in place."""
FAST_WATCH_S, SLOW_WATCH_S = 0.005, 0.025
"""How often a process looks for commits of others: while there are some, and when idle."""
QUIET_LOOKS = 20
"""Looks without news after which it looks slowly."""


class SQLiteBackend(Backend):
    """A file in WAL mode; every commit is on disk before it is acknowledged."""

    now_us = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"

    _move = (
        f"UPDATE head SET size = coalesce(?, size), lease_until_us = {now_us} + ? "
        "WHERE id = 1 AND epoch = ?"
    )

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.bell = Bell()
        self._reader = self._engine("BEGIN", READERS, BUSY_TIMEOUT_S)
        self._writer = self._engine("BEGIN IMMEDIATE", 1, 0)
        self._reading = ThreadPoolExecutor(READERS, "loomdb-read")
        self._writing = ThreadPoolExecutor(1, "loomdb-write")
        self._connection: Connection | None = None
        self._write_lock = asyncio.Lock()
        self._usual_s = 0.0
        self._alive: int | None = None

    def _engine(self, begin: str, pool_size: int, timeout_s: float) -> Engine:
        engine = create_engine(
            f"sqlite:///{self.path}",
            connect_args={"timeout": timeout_s, "check_same_thread": False},
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=0,
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, record: object) -> None:
            # Transactions are begun below, as this driver would begin them too late.
            connection.isolation_level = None
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=FULL", f"cache_size=-{CACHE_KIB}"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(engine, "begin")
        def start(connection: Any) -> None:
            connection.exec_driver_sql(begin)

        return engine

    async def read_once(self, work: Callable[[Connection], T]) -> T:  # noqa: D102
        return await asyncio.get_running_loop().run_in_executor(self._reading, self.read_now, work)

    async def glance(self, work: Callable[[Connection], T]) -> T:
        """In place: readers wait for nobody here, and a hop to a thread costs more."""
        return self.read_now(work)

    async def append_rows(
        self, rows: Sequence[EventRow], size: int, epoch: int, lease_us: int
    ) -> bool:
        """In place and straight to the driver: else half of the time would be SQLAlchemy's."""
        async with self._write_lock:
            if self._connection is not None and self._usual_s < QUICK_S:
                driver: Any = self._connection.connection.dbapi_connection
                began = time.perf_counter()
                try:
                    driver.execute("BEGIN IMMEDIATE")
                    moved = driver.execute(self._move, (size, lease_us, epoch)).rowcount == 1
                    if moved:
                        driver.executemany(INSERT, rows)
                    driver.execute("COMMIT")
                    self._usual_s += (time.perf_counter() - began - self._usual_s) / 8
                    return bool(moved)
                except BaseException as error:
                    if driver.in_transaction:
                        driver.execute("ROLLBACK")
                    if _code(error) != sqlite3.SQLITE_BUSY:
                        raise
        return await super().append_rows(rows, size, epoch, lease_us)

    async def write_once(self, work: Callable[[Connection], T]) -> T:
        """In the thread for writing; in place while commits are quicker than a hop to it."""
        async with self._write_lock:
            if self._usual_s < QUICK_S and self._begin_at_once():
                return self._finish(work)
            loop = asyncio.get_running_loop()
            writing = loop.run_in_executor(self._writing, self.write_now, work)
            try:
                return await asyncio.shield(writing)
            except asyncio.CancelledError:
                # The thread goes on; nobody else may use the connection before it is done.
                await asyncio.wait([writing])
                raise

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """As `read_once`, in this thread."""
        with self._reader.begin() as connection:
            return work(connection)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """As `write_once`, in this thread; for a file that nobody else uses."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        wait_s = 0.001
        while not self._begin_at_once():
            if time.monotonic() > deadline and self._connection is not None:
                self._connection.begin()  # raises what keeps it from beginning
                break
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_BUSY_WAIT_S)
        return self._finish(work)

    def _begin_at_once(self) -> bool:
        """Begin a transaction that may write, unless another process has one."""
        # One connection for ever: taking one from the pool costs more than a small commit.
        if self._connection is None:
            self._connection = self._writer.connect()
        try:
            self._connection.begin()
        except OperationalError as error:
            self._connection.rollback()
            if _code(error) != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    def _finish(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in the transaction that was begun, and end it."""
        assert self._connection is not None
        began = time.perf_counter()
        try:
            result = work(self._connection)
            self._connection.commit()
        except BaseException:
            self._connection.rollback()
            raise
        self._usual_s += (time.perf_counter() - began - self._usual_s) / 8
        return result

    def insert_events(  # noqa: D102
        self, connection: Connection, rows: Sequence[EventRow]
    ) -> None:
        # Straight to the driver: SQLAlchemy looks at every row once more.
        driver: Any = connection.connection.dbapi_connection
        driver.executemany(INSERT, rows)

    def move_head(  # noqa: D102
        self, connection: Connection, size: int | None, epoch: int, lease_us: int
    ) -> bool:
        return connection.exec_driver_sql(self._move, (size, lease_us, epoch)).rowcount == 1

    async def hold_alive_lock(self) -> bool:  # noqa: D102
        if self._alive is not None:
            return True
        handle = os.open(f"{self.path}.sequencer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._alive = handle
        return True

    async def free_alive_lock(self) -> None:  # noqa: D102
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None

    async def start_watching(self) -> None:  # noqa: D102
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())

    async def _look(self) -> None:
        """Ring when another connection commits (PRAGMA data_version)."""
        connection = sqlite3.connect(self.path, timeout=0)
        try:
            known: Any = None
            quiet = 0
            while True:
                version = connection.execute("PRAGMA data_version").fetchone()
                if version != known:
                    known, quiet = version, 0
                    self.bell.ring()
                quiet += 1
                await asyncio.sleep(FAST_WATCH_S if quiet < QUIET_LOOKS else SLOW_WATCH_S)
        finally:
            connection.close()

    def ring_sequencer(self, connection: Connection) -> None:
        """Nothing to do: the sequencer looks."""

    def is_lost(self, error: BaseException) -> bool:
        """A file cannot be lost, but it can be busy for longer than one waits."""
        return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def is_full(self, error: BaseException) -> bool:  # noqa: D102
        return _code(error) == sqlite3.SQLITE_FULL

    def is_duplicate(self, error: BaseException) -> bool:  # noqa: D102
        return _code(error) == sqlite3.SQLITE_CONSTRAINT

    async def erase(self, work: Callable[[Connection], T]) -> T:  # noqa: D102
        def erase(connection: Connection) -> T:
            connection.exec_driver_sql("PRAGMA secure_delete=ON")
            try:
                return work(connection)
            finally:
                connection.exec_driver_sql("PRAGMA secure_delete=OFF")

        def truncate() -> None:
            connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.close()

        result = await self.write(erase)
        # Pages are zeroed in the file; older copies are in the write-ahead log.
        await asyncio.get_running_loop().run_in_executor(self._writing, truncate)
        return result

    async def close(self) -> None:  # noqa: D102
        await self.stop_watching()
        await self.free_alive_lock()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        if self._connection is not None:
            self._writing.submit(self._connection.close).result()
            self._connection = None
        for threads, engine in ((self._writing, self._writer), (self._reading, self._reader)):
            threads.shutdown()
            engine.dispose()

    @asynccontextmanager
    async def migration_lock(self) -> AsyncIterator[None]:  # noqa: D102
        handle = os.open(f"{self.path}.migration", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await asyncio.to_thread(fcntl.flock, handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _code(error: BaseException) -> int | None:
    """SQLite's primary result code."""
    code = getattr(original(error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
