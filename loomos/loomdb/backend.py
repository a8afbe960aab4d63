"""What SQLite and PostgreSQL do differently, behind one interface.

Work on the database is a plain function of a SQLAlchemy `Connection`. On PostgreSQL it runs on an
async engine (asyncpg); on SQLite in a thread, once per transaction, as a hop per statement costs
more than the statement.

A backend owns the connections, the lock that shows that a sequencer's process lives, and the bell:
everyone who waits for new events or appends waits on it. `open_backend` chooses by the URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from loomos.errors import InvalidInput
from loomos.loomdb.errors import LedgerFull, LedgerUnavailable
from loomos.loomdb.events import Prepared
from loomos.loomdb.schema import REVISION

T = TypeVar("T")

PATIENCE_S, RETRY_S = 30.0, 0.2
"""How long, and how often, a read is tried while the database is away."""

EventRow = tuple[int, str, str, int, str, int, int, str, bytes]
"""A row of `events`, in the order of its columns."""


class Bell:
    """Rings when something was committed. Listen first, then look, then wait."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._listeners: set[Callable[[], None]] = set()

    def ring(self) -> None:
        """Wake all who wait."""
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()
        for listener in self._listeners:
            listener()

    def listen(self) -> asyncio.Event:
        """An event that the next ring sets."""
        return self._rung

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call it at each ring."""
        self._listeners.add(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        self._listeners.discard(listener)


async def wait_for_ring(rung: asyncio.Event, timeout_s: float) -> None:
    """Wait for a ring, but no longer than so."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await rung.wait()


def event_row(position: int, version: int, event: Prepared) -> EventRow:
    """The row of an event."""
    return (
        position,
        event.event_id,
        event.stream,
        version,
        event.event_type,
        event.schema,
        event.time_us,
        event.entry,
        event.leaf,
    )


class Backend(ABC):
    """A database."""

    now_us: str
    """SQL for the database's clock, in microseconds since the epoch."""
    bell: Bell
    _watch: asyncio.Task[None] | None = None

    @abstractmethod
    async def read_once(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection; all it reads is of one moment."""

    @abstractmethod
    async def write_once(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of the writing connection, one at a time, and commit."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """As `read_once`, again while the database is away.

        Raises:
            LedgerUnavailable: it stays away.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self.read_once(work)
            except Exception as error:
                if not self.is_lost(error):
                    raise
                if time.monotonic() > deadline:
                    raise LedgerUnavailable(f"the database does not answer: {error}") from None
                await asyncio.sleep(RETRY_S)

    async def glance(self, work: Callable[[Connection], T]) -> T:
        """As `read`, for a few rows found by key; may be done in place.

        Raises:
            LedgerUnavailable: the database stays away.
        """
        return await self.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """As `write_once`, with our errors.

        Raises:
            LedgerUnavailable: the database is away; whether it was written is unknown.
            LedgerFull: its disk is full.
        """
        try:
            return await self.write_once(work)
        except Exception as error:
            if self.is_lost(error):
                raise LedgerUnavailable(f"the database does not answer: {error}") from None
            if self.is_full(error):
                raise LedgerFull("the ledger's disk is full; nothing was written") from None
            raise

    @abstractmethod
    def insert_events(self, connection: Connection, rows: Sequence[EventRow]) -> None:
        """Add rows to `events`, the fastest way there is."""

    @abstractmethod
    def move_head(
        self, connection: Connection, size: int | None, epoch: int, lease_us: int
    ) -> bool:
        """Set the size, unless None, and renew the lease, if `epoch` is still the current one."""

    async def append_rows(
        self, rows: Sequence[EventRow], size: int, epoch: int, lease_us: int
    ) -> bool:
        """`move_head` and `insert_events` as one transaction, for a few rows and nothing else."""

        def write(connection: Connection) -> bool:
            moved = self.move_head(connection, size, epoch, lease_us)
            if moved:
                self.insert_events(connection, rows)
            return moved

        return await self.write_once(write)

    @abstractmethod
    async def hold_alive_lock(self) -> bool:
        """Try to take, or keep, the lock that the database frees when this process dies."""

    @abstractmethod
    async def free_alive_lock(self) -> None:
        """Give that lock back."""

    @abstractmethod
    async def start_watching(self) -> None:
        """Let the bell ring for what other processes commit."""

    @abstractmethod
    def ring_sequencer(self, connection: Connection) -> None:
        """Within a transaction that fills the inbox: wake the sequencer at commit."""

    @abstractmethod
    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection failed, so that nobody knows what was committed."""

    @abstractmethod
    def is_full(self, error: BaseException) -> bool:
        """Whether the disk is full."""

    @abstractmethod
    def is_duplicate(self, error: BaseException) -> bool:
        """Whether a unique constraint was violated."""

    @abstractmethod
    async def erase(self, work: Callable[[Connection], T]) -> T:
        """As `write`; what `work` removes is overwritten, as far as the database can."""

    async def stop_watching(self) -> None:
        """Ring no more for others."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything."""

    async def migrate(self) -> None:
        """Bring the tables to the newest revision."""
        if await self._revision() == REVISION:
            return
        from loomos.loomdb.migrations import upgrade

        async with self.migration_lock():
            await self.write(upgrade)

    @contextlib.asynccontextmanager
    async def migration_lock(self) -> AsyncIterator[None]:
        """Only one process migrates at a time."""
        yield

    async def _revision(self) -> str | None:
        query = text("SELECT version_num FROM alembic_version")
        try:
            found: str | None = await self.read(lambda c: c.execute(query).scalar())
            return found
        except DBAPIError as error:
            if self.is_lost(error):
                raise
            return None


def open_backend(url: str) -> Backend:
    """The backend of a URL.

    Raises:
        InvalidInput: it is neither `sqlite:///PATH` nor `postgresql://...`.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme.split("+")[0] == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from loomos.loomdb.sqlite import SQLiteBackend

        return SQLiteBackend(Path(rest[1:]))
    if separator and scheme.split("+")[0] in ("postgresql", "postgres"):
        from loomos.loomdb.postgres import PostgresBackend

        return PostgresBackend(f"postgresql+asyncpg://{rest}")
    raise InvalidInput(f"loomdb.url {url!r}: write sqlite:///PATH or postgresql://USER@HOST/NAME")


def original(error: BaseException) -> Any:
    """The driver's own error."""
    found: Any = error
    while isinstance(found, DBAPIError) and found.orig is not None:
        found = found.orig
    return found
