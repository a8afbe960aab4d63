"""Reading events: by conditions, one by one, and as they come."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from loomos.errors import NotFound
from loomos.jobs.states import JobState
from loomos.loomdb.backend import Backend, wait_for_ring
from loomos.loomdb.errors import LedgerUnavailable
from loomos.loomdb.event_types import EventType
from loomos.loomdb.events import Event, Upcasters, read_event, subject_of
from loomos.loomdb.queries import Filter
from loomos.loomdb.schema import events, head
from loomos.loomdb.subjects import SubjectKeys

log = logging.getLogger(__name__)

READ_AHEAD = 1000
WATCH_POLL_S = 2.0
"""A subscription looks at least so often, should a wake-up be lost."""


class UnknownJob(NotFound, ValueError):
    """No event is about a job of this id."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as the ledger knows it."""

    job_id: str
    """Which."""
    state: JobState
    """Where it was at the newest event."""
    message: str
    """How it ended; empty before."""
    recorded_at: datetime
    """When the newest event was recorded."""


_STATES = {
    EventType.LEASE_GRANTED: JobState.RUNNING,
    EventType.CHECKPOINT_COMMITTED: JobState.RUNNING,
    EventType.RUN_RECOVERED: JobState.RECOVERING,
    EventType.MODEL_PUBLISHED: JobState.PUBLISHING,
}


class EventReader(ABC):
    """What can be asked of an open database."""

    _backend: Backend
    _subjects: SubjectKeys
    upcasters: Upcasters

    @abstractmethod
    async def open(self) -> Any:
        """Make it ready; a second time nothing happens."""

    async def query_events(
        self,
        filters: Mapping[str, Any] | None = None,
        *,
        event_type: str | Sequence[str] | None = None,
        stream: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        user_id: str | None = None,
        after: int | None = None,
        limit: int | None = None,
        newest_first: bool | None = None,
    ) -> list[Event]:
        """Events that fit, in order; give conditions by name or as a mapping.

        Raises:
            InvalidInput: a condition is not known or does not fit.
        """
        named = {
            "event_type": event_type,
            "stream": stream,
            "start_time": start_time,
            "end_time": end_time,
            "user_id": user_id,
            "after": after,
            "limit": limit,
            "newest_first": newest_first,
        }
        wanted = Filter.of(filters, named)
        await self.open()
        reference = None
        if wanted.user_id is not None:
            subject = await self._subjects.find(wanted.user_id)
            if subject is None:
                return []
            reference = subject.reference
        rows = await self._backend.read(lambda c: c.execute(wanted.select(reference)).all())
        return await self._events([(r[0], r[1], r[2]) for r in rows])

    async def event(self, event_id: str) -> Event:
        """The event with this id.

        Raises:
            NotFound: there is none.
        """
        return await self._one(events.c.event_id == event_id, f"event {event_id!r}")

    async def event_at(self, position: int) -> Event:
        """The event at this position.

        Raises:
            NotFound: there is none.
        """
        return await self._one(events.c.position == position, f"event at position {position}")

    async def _one(self, condition: Any, what: str) -> Event:
        await self.open()
        query = select(events.c.position, events.c.version, events.c.entry).where(condition)
        rows = await self._backend.glance(lambda c: c.execute(query).all())
        if not rows:
            raise NotFound(f"no {what}")
        (found,) = await self._events([(r[0], r[1], r[2]) for r in rows])
        return found

    async def _events(self, rows: Sequence[tuple[int, int, str]]) -> list[Event]:
        references = {subject_of(json.loads(e)) for _, _, e in rows if '"subject":"' in e}
        keys = await self._subjects.for_reading(r for r in references if r)
        return [
            read_event(position, version, entry, keys, self.upcasters)
            for position, version, entry in rows
        ]

    async def size(self) -> int:
        """How many events there are; the next position."""
        await self.open()
        return await self._backend.glance(_size)

    async def stream_version(self, stream: str) -> int:
        """How many events a stream has; what `expected_version` compares with."""
        found = await self.query_events(stream=stream, limit=1, newest_first=True)
        return found[0].version if found else 0

    async def get_job_status(self, job_id: str) -> JobRecord:
        """Where a job was when the ledger last heard of it; `LoomOSClient` knows where it is.

        Raises:
            UnknownJob: no event is about it; it is a ValueError too.
        """
        newest = await self.query_events(stream=f"job:{job_id}", limit=1, newest_first=True)
        if not newest:
            raise UnknownJob(f"the ledger knows no job {job_id!r}; `loomos jobs list` shows them")
        (event,) = newest
        state = _STATES.get(EventType(event.event_type), JobState.QUEUED)
        if event.event_type == EventType.JOB_ENDED:
            state = JobState(event.data["state"])
        return JobRecord(
            job_id=job_id,
            state=state,
            message=str(event.data.get("message", "")),
            recorded_at=event.time,
        )

    async def stream_events(
        self,
        event_types: Sequence[str] | None = None,
        *,
        after: int = -1,
        stream: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Events as they come: first those there are, then new ones; none twice, none left out.

        Args:
            event_types: only these.
            after: go on behind this position; -1 begins at the first event,
                `await db.size() - 1` with the next new one.
            stream: only about this.
        """
        await self.open()
        next_position = after + 1

        def look(connection: Connection) -> tuple[int, list[tuple[int, int, str]]]:
            size = _size(connection)
            if next_position >= size:
                return size, []
            wanted = Filter(
                event_types=event_types, stream=stream, after=next_position - 1, limit=READ_AHEAD
            )
            return size, [(p, v, e) for p, v, e in connection.execute(wanted.select(None))]

        while True:
            rung = self._backend.bell.listen()
            try:
                size, rows = await self._backend.read(look)
                found = await self._events(rows)
            except LedgerUnavailable as error:
                log.warning("a subscription waits at %d: %s", next_position, error)
                continue
            for event in found:
                yield event
            if next_position >= size:
                await wait_for_ring(rung, WATCH_POLL_S)
            next_position = rows[-1][0] + 1 if len(rows) == READ_AHEAD else max(size, after + 1)


def _size(connection: Connection) -> int:
    return int(connection.execute(select(head.c.size)).scalar_one())
