"""What one commit of the sequencer writes: places for events, answers for those who asked.

Nothing here changes the database or anything that outlives the plan but the memory of versions,
and that only when the sequencer says that the commit succeeded.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select
from sqlalchemy.sql import func

from loomos.errors import LoomOSError
from loomos.loomdb.appends import Append, Recorded
from loomos.loomdb.backend import EventRow, event_row
from loomos.loomdb.errors import EventIdReused, WrongVersion
from loomos.loomdb.events import Prepared
from loomos.loomdb.schema import events

KNOWN_STREAMS = 100_000
"""Streams whose versions are remembered."""
ASKED_AT_ONCE = 1_000

Known = dict[str, tuple[Recorded, Prepared]]
"""Events by id: where they stand and what they say."""


@dataclass
class Plan:
    """One commit."""

    size: int
    """Events before it."""
    versions: dict[str, int]
    """Version of each stream it touches, growing as events are placed."""
    rows: list[EventRow] = field(default_factory=list)
    """Events to write."""
    outcomes: list[tuple[Append, list[Recorded] | LoomOSError]] = field(default_factory=list)
    """What every request is told when it has been committed."""

    @property
    def leaves(self) -> list[bytes]:
        """Leaf hashes of the rows."""
        return [row[8] for row in self.rows]

    def add(self, request: Append, known: Known) -> None:
        """Give a request's events their places, all or none."""
        try:
            if request.refusal is not None:
                raise request.refusal
            if request.expected is None and not request.may_be_known:
                recorded = self._place_new(request.events)
            else:
                recorded = self._place(request, known)
        except LoomOSError as error:
            self.outcomes.append((request, error))
        else:
            self.outcomes.append((request, recorded))

    def _place(self, request: Append, known: Known) -> list[Recorded]:
        size = self.size + len(self.rows)
        rows: list[EventRow] = []
        recorded: list[Recorded] = []
        versions: dict[str, int] = {}
        fresh: Known = {}
        for event in request.events:
            if found := known.get(event.event_id) or fresh.get(event.event_id):
                _check_same(event, *found)
                recorded.append(found[0])
                continue
            stream = event.stream
            version = (versions[stream] if stream in versions else self.versions[stream]) + 1
            versions[stream] = version
            place = Recorded(event.event_id, size + len(rows), version)
            rows.append(event_row(place.position, version, event))
            recorded.append(place)
            fresh[event.event_id] = (place, event)
        if request.expected is not None and rows:
            stream, expected = request.expected
            if self.versions.get(stream, 0) != expected:
                raise WrongVersion(
                    f"stream {stream!r} is at version {self.versions.get(stream, 0)}, not at "
                    f"{expected}; read what is new and decide again"
                )
        self.rows += rows
        self.versions |= versions
        known |= fresh
        return recorded

    def _place_new(self, new: Sequence[Prepared]) -> list[Recorded]:
        """Places of events that cannot have been appended before: nothing to compare."""
        versions = {event.stream: self.versions[event.stream] for event in new}
        rows: list[EventRow] = []
        for position, event in enumerate(new, self.size + len(self.rows)):
            event_id, stream, kind, schema, time_us, entry, leaf, _ = event
            version = versions[stream] = versions[stream] + 1
            rows.append((position, event_id, stream, version, kind, schema, time_us, entry, leaf))
        self.rows += rows
        self.versions |= versions
        return [Recorded(row[1], row[0], row[3]) for row in rows]


class Planner:
    """Makes plans; remembers versions of streams between them."""

    def __init__(self) -> None:
        self._versions: OrderedDict[str, int] = OrderedDict()

    def forget(self) -> None:
        """Remember nothing: another process may have appended."""
        self._versions.clear()

    def remember(self, plan: Plan) -> None:
        """The plan was committed."""
        self._versions |= plan.versions
        for stream in plan.versions:
            self._versions.move_to_end(stream)
        while len(self._versions) > KNOWN_STREAMS:
            self._versions.popitem(last=False)

    def plan_blind(self, size: int, requests: Sequence[Append]) -> Plan | None:
        """A plan from memory alone; None if the database must be asked."""
        if any(
            request.may_be_known or any(e.stream not in self._versions for e in request.events)
            for request in requests
        ):
            return None
        versions = {e.stream: self._versions[e.stream] for r in requests for e in r.events}
        plan = Plan(size, versions)
        for request in requests:
            plan.add(request, {})
        return plan

    def plan(self, connection: Connection, size: int, requests: Sequence[Append]) -> Plan:
        """A plan that has looked what is there already."""
        known = _known_events(connection, requests)
        plan = Plan(size, self._load_versions(connection, requests))
        for request in requests:
            plan.add(request, known)
        return plan

    def _load_versions(self, connection: Connection, requests: Sequence[Append]) -> dict[str, int]:
        streams = {event.stream for request in requests for event in request.events}
        streams |= {request.expected[0] for request in requests if request.expected}
        versions = {s: self._versions[s] for s in streams if s in self._versions}
        missing = [s for s in streams if s not in versions]
        for start in range(0, len(missing), ASKED_AT_ONCE):
            some = missing[start : start + ASKED_AT_ONCE]
            rows = connection.execute(
                select(events.c.stream, func.max(events.c.version))
                .where(events.c.stream.in_(some))
                .group_by(events.c.stream)
            )
            versions |= dict.fromkeys(some, 0) | {stream: version for stream, version in rows}
        return versions


def _known_events(connection: Connection, requests: Sequence[Append]) -> Known:
    """Those of the events that were appended before."""
    ids = [e.event_id for r in requests if r.may_be_known for e in r.events]
    known: Known = {}
    columns = events.c
    for start in range(0, len(ids), ASKED_AT_ONCE):
        rows = connection.execute(
            select(
                columns.position,
                columns.version,
                columns.event_id,
                columns.stream,
                columns.event_type,
                columns.schema,
                columns.time_us,
                columns.entry,
                columns.leaf,
            ).where(columns.event_id.in_(ids[start : start + ASKED_AT_ONCE]))
        )
        for row in rows:
            place = Recorded(row.event_id, row.position, row.version)
            known[row.event_id] = (place, Prepared(*row[2:], False))
    return known


def _check_same(event: Prepared, place: Recorded, before: Prepared) -> None:
    """An event that is appended again must say the same, time and personal parts aside."""
    same = (event.stream, event.event_type, event.schema) == (
        before.stream,
        before.event_type,
        before.schema,
    )
    if not same or json.loads(event.entry)["data"] != json.loads(before.entry)["data"]:
        raise EventIdReused(
            f"event id {event.event_id!r} stands for another event, at position "
            f"{place.position}; use a new id for a new fact"
        )
