"""Which events to read: one filter, in both of the forms that callers write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select

from loomos.errors import InvalidInput
from loomos.loomdb.events import microseconds
from loomos.loomdb.schema import events

MOST_EVENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What events must be like; every condition must hold."""

    event_types: Sequence[str] | None = None
    """One of these."""
    stream: str | None = None
    """About this."""
    start_time: datetime | None = None
    """Logged then or later; without a zone it is local time."""
    end_time: datetime | None = None
    """Logged before."""
    user_id: str | None = None
    """By this person."""
    after: int = -1
    """At later positions than this."""
    limit: int = 1000
    """No more than so many."""
    newest_first: bool = False
    """From the end."""

    @classmethod
    def of(cls, filters: Mapping[str, Any] | None, named: Mapping[str, Any]) -> Filter:
        """From a mapping, from named arguments, or both; `event_type` is one or a list.

        Raises:
            InvalidInput: a condition is not known, or its value does not fit.
        """
        wanted = {**(filters or {}), **{k: v for k, v in named.items() if v is not None}}
        if (kinds := wanted.pop("event_type", None)) is not None:
            wanted["event_types"] = [kinds] if isinstance(kinds, str) else list(kinds)
        unknown = sorted(set(wanted) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(["event_type", *cls.__dataclass_fields__])
            raise InvalidInput(f"filters: {', '.join(unknown)} not known; use {known}")
        found = cls(**wanted)
        if not 1 <= found.limit <= MOST_EVENTS:
            raise InvalidInput(f"limit {found.limit}: 1 to {MOST_EVENTS}; go on with `after`")
        for name in ("start_time", "end_time"):
            if not isinstance(wanted.get(name), (datetime, type(None))):
                raise InvalidInput(f"{name}: a datetime, not {type(wanted[name]).__name__}")
        return found

    def select(self, reference: str | None) -> Select[int, int, str]:
        """The query for position, version and entry.

        Args:
            reference: of the person `user_id`; None if nobody is asked for.
        """
        columns = events.c
        query = select(columns.position, columns.version, columns.entry)
        if self.after >= 0:
            query = query.where(columns.position > self.after)
        if self.event_types is not None:
            query = query.where(columns.event_type.in_([str(t) for t in self.event_types]))
        if self.stream is not None:
            query = query.where(columns.stream == self.stream)
        if self.start_time is not None:
            query = query.where(columns.time_us >= microseconds(self.start_time))
        if self.end_time is not None:
            query = query.where(columns.time_us < microseconds(self.end_time))
        if reference is not None:
            query = query.where(columns.entry.contains(f'"subject":"{reference}"'))
        order = columns.position.desc() if self.newest_first else columns.position
        return query.order_by(order).limit(self.limit)
