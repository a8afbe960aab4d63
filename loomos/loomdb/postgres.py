"""LoomDB on PostgreSQL: any number of processes and machines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from loomos.loomdb.backend import Backend, Bell, EventRow, T, original

CHANNEL = "loomdb"
ALIVE_LOCK, MIGRATION_LOCK = 0x4C4F4F4D, 0x4C4F4F4E
"""Advisory locks; the database frees them when the session ends."""
STALLED_MS = 5_000
"""A writing session that sleeps inside a transaction is ended by the server after so long."""
WATCH_RETRY_S = 0.5
COLUMNS = (
    "position",
    "event_id",
    "stream",
    "version",
    "event_type",
    "schema",
    "time_us",
    "entry",
    "leaf",
)


INSERT = f"INSERT INTO events VALUES ({', '.join(f'${i + 1}' for i in range(len(COLUMNS)))})"
APPEND = (
    "WITH moved AS (UPDATE head SET size = $1, lease_until_us = "
    "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $3::bigint "
    "WHERE id = 1 AND epoch = $2 RETURNING 1), "
    "added AS (INSERT INTO events SELECT * FROM unnest($4::bigint[], $5::text[], $6::text[], "
    "$7::bigint[], $8::text[], $9::int[], $10::bigint[], $11::text[], $12::bytea[]) "
    "WHERE EXISTS (SELECT FROM moved)) "
    f"SELECT pg_notify('{CHANNEL}', '') FROM moved"
)
SMALL = 20
"""Fewer rows go faster by INSERT than by COPY, which asks for the columns' types first."""


class PostgresBackend(Backend):
    """A database of PostgreSQL 13 or newer."""

    now_us = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

    def __init__(self, url: str) -> None:
        address = make_url(url)
        query = dict(address.query)
        role = query.pop("role", None)
        self._role = role if isinstance(role, str) else None
        self._url = address.set(query=query)
        self.bell = Bell()
        self._reader = create_async_engine(
            self._url,
            isolation_level="REPEATABLE READ",
            pool_size=5,
            max_overflow=15,
            pool_pre_ping=True,
        )
        self._writer = create_async_engine(
            self._url,
            isolation_level="READ COMMITTED",
            pool_size=1,
            max_overflow=0,
            connect_args={
                "server_settings": {"idle_in_transaction_session_timeout": str(STALLED_MS)}
            },
        )
        for engine in (self._reader, self._writer):
            event.listen(engine.sync_engine, "connect", self._take_role)
        self._writing = asyncio.Lock()
        self._alive: Any = None

    def _take_role(self, connection: Any, record: object) -> None:
        """Act as the role of the URL's `role=`, which need have no rights but to add."""
        if self._role is not None:
            quoted = self._role.replace('"', '""')
            cursor = connection.cursor()
            cursor.execute(f'SET SESSION ROLE "{quoted}"')
            cursor.close()
            connection.commit()

    async def read_once(self, work: Callable[[Connection], T]) -> T:  # noqa: D102
        async with self._reader.begin() as connection:
            return await connection.run_sync(work)

    async def write_once(self, work: Callable[[Connection], T]) -> T:  # noqa: D102
        async with self._writing, self._writer.begin() as connection:
            return await connection.run_sync(work)

    def insert_events(  # noqa: D102
        self, connection: Connection, rows: Sequence[EventRow]
    ) -> None:
        # Goes past SQLAlchemy, which begins a transaction at the first execution: move_head's.
        adapted: Any = connection.connection.dbapi_connection
        if len(rows) < SMALL:
            adapted.run_async(lambda driver: driver.executemany(INSERT, rows))
        else:
            adapted.run_async(
                lambda driver: driver.copy_records_to_table("events", records=rows, columns=COLUMNS)
            )

    def move_head(  # noqa: D102
        self, connection: Connection, size: int | None, epoch: int, lease_us: int
    ) -> bool:
        moved = connection.execute(
            text(
                "WITH moved AS (UPDATE head SET size = coalesce(CAST(:size AS bigint), size), "
                f"lease_until_us = {self.now_us} + :lease WHERE id = 1 AND epoch = :epoch "
                f"RETURNING 1) SELECT pg_notify('{CHANNEL}', '') FROM moved"
            ),
            {"size": size, "lease": lease_us, "epoch": epoch},
        )
        return len(moved.all()) == 1

    async def append_rows(
        self, rows: Sequence[EventRow], size: int, epoch: int, lease_us: int
    ) -> bool:
        """In one statement: one trip to the server instead of four."""
        async with self._writing, self._writer.connect() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            moved = await driver.fetch(
                APPEND, size, epoch, lease_us, *map(list, zip(*rows, strict=True))
            )
        return len(moved) == 1

    async def hold_alive_lock(self) -> bool:  # noqa: D102
        if self._alive is not None and not self._alive.is_closed():
            return True
        connection = await self._connect()
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", ALIVE_LOCK):
            self._alive = connection
            return True
        await connection.close()
        return False

    async def free_alive_lock(self) -> None:  # noqa: D102
        if self._alive is not None:
            connection, self._alive = self._alive, None
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=2)

    async def _connect(self) -> Any:
        url = self._url
        query = {k: v for k, v in url.query.items() if k in ("host", "port")}
        return await asyncpg.connect(
            user=url.username,
            password=url.password,
            host=query.get("host", url.host),
            port=int(str(query.get("port", url.port or 5432))),
            database=url.database,
            timeout=10,
        )

    async def start_watching(self) -> None:  # noqa: D102
        if self._watch is None:
            self._watch = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Ring at each NOTIFY; after a lost connection too, as some may have been missed."""
        while True:
            try:
                connection = await self._connect()
            except (OSError, TimeoutError, asyncpg.PostgresError):
                await asyncio.sleep(WATCH_RETRY_S)
                continue
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _, ended=ended: ended.set())
            try:
                await connection.add_listener(CHANNEL, lambda *_: self.bell.ring())
                self.bell.ring()
                await ended.wait()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(WATCH_RETRY_S)
            finally:
                connection.terminate()

    def ring_sequencer(self, connection: Connection) -> None:  # noqa: D102
        connection.execute(text(f"SELECT pg_notify('{CHANNEL}', 'inbox')"))

    def is_lost(self, error: BaseException) -> bool:  # noqa: D102
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        lost = (OSError, TimeoutError, asyncpg.InterfaceError)
        if any(isinstance(cause, lost) for cause in _causes(error)):
            return True
        state = _state(error)
        # 08: connection; 57P: ended or starting; 25P03: the session slept in a transaction.
        return state is not None and (state[:2] == "08" or state[:3] == "57P" or state == "25P03")

    def is_full(self, error: BaseException) -> bool:  # noqa: D102
        return _state(error) == "53100"

    def is_duplicate(self, error: BaseException) -> bool:  # noqa: D102
        return _state(error) == "23505"

    async def erase(self, work: Callable[[Connection], T]) -> T:  # noqa: D102
        result = await self.write(work)
        connection = await self._connect()
        try:
            await connection.execute("VACUUM subjects")
        finally:
            await connection.close()
        return result

    async def close(self) -> None:  # noqa: D102
        await self.stop_watching()
        await self.free_alive_lock()
        await self._writer.dispose()
        await self._reader.dispose()

    @asynccontextmanager
    async def migration_lock(self) -> AsyncIterator[None]:  # noqa: D102
        connection = await self._connect()
        try:
            await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
            yield
        finally:
            await connection.close()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it stems from, down to the driver's own."""
    cause: BaseException | None = original(error)
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _state(error: BaseException) -> str | None:
    """The SQLSTATE."""
    for cause in _causes(error):
        if state := getattr(cause, "sqlstate", None):
            return str(state)
    return None
