"""Read models: tables computed from events, caught up in order, rebuilt at will.

A projection's rows and its position change in one transaction, so each event counts once, however
often a process dies. Two processes that run the same projection do not disturb each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from loomos.loomdb.events import Event, microseconds
from loomos.loomdb.schema import projections

BATCH = 1000


class Projection(ABC):
    """A read model. Subclasses name their tables and say what an event does to them."""

    name: ClassVar[str]
    """Unique in the database."""
    version: ClassVar[int] = 1
    """Raise it when `apply` or the tables change: the next run rebuilds."""
    tables: ClassVar[MetaData]
    """Made when first used, emptied by a rebuild."""

    @abstractmethod
    def apply(self, events: Sequence[Event], connection: Connection) -> None:
        """Let some events, in their order, change the tables."""


def start(projection: Projection, connection: Connection) -> int:
    """Make a projection's tables if need be.

    Returns:
        The position of the next event to apply; 0 after a change of version.
    """
    projection.tables.create_all(connection)
    row = (
        connection.execute(
            select(projections.c.version, projections.c.position).where(
                projections.c.name == projection.name
            )
        )
    ).one_or_none()
    if row is None:
        connection.execute(
            insert(projections).values(name=projection.name, version=projection.version, position=0)
        )
        return 0
    if row.version != projection.version:
        clear(projection, connection)
        return 0
    return int(row.position)


def clear(projection: Projection, connection: Connection) -> None:
    """Empty a projection's tables; the next run applies every event again."""
    projection.tables.drop_all(connection)
    projection.tables.create_all(connection)
    connection.execute(
        update(projections)
        .where(projections.c.name == projection.name)
        .values(version=projection.version, position=0)
    )


def advance(
    projection: Projection, position: int, events: Sequence[Event], connection: Connection
) -> int:
    """Apply events from `position` on, unless another process was faster.

    Returns:
        The position of the next event to apply.
    """
    moved = connection.execute(
        update(projections)
        .where(
            projections.c.name == projection.name,
            projections.c.version == projection.version,
            projections.c.position == position,
        )
        .values(position=position + len(events))
    )
    if moved.rowcount != 1:
        return start(projection, connection)
    projection.apply(events, connection)
    return position + len(events)


class ResourceMetrics(Projection):
    """Counts and numbers per resource, for `get_performance_metrics`.

    An event is about the resource named by its data's `resource_id` or `job_id`, else by its
    stream. Every number in its data, and in a mapping called `metrics`, is a sample.
    """

    name = "resource_metrics"
    version = 1
    tables = MetaData()
    resources = Table(
        "resource_activity",
        tables,
        Column("resource", Text, primary_key=True),
        Column("events", Integer, nullable=False),
        Column("first_us", BigInteger, nullable=False),
        Column("last_us", BigInteger, nullable=False),
        Column("last_type", Text, nullable=False),
    )
    samples = Table(
        "resource_samples",
        tables,
        Column("resource", Text, primary_key=True),
        Column("metric", Text, primary_key=True),
        Column("samples", Integer, nullable=False),
        Column("total", Float, nullable=False),
        Column("minimum", Float, nullable=False),
        Column("maximum", Float, nullable=False),
        Column("last", Float, nullable=False),
    )

    def apply(  # noqa: D102
        self, events: Sequence[Event], connection: Connection
    ) -> None:
        activity: dict[str, _Activity] = {}
        samples: dict[tuple[str, str], _Sample] = {}
        for event in events:
            named = event.data.get("resource_id") or event.data.get("job_id")
            resource = str(named or event.stream)
            time_us = microseconds(event.time)
            activity[resource] = _Activity(1, time_us, time_us, event.event_type).after(
                activity.get(resource)
            )
            for metric, value in _numbers(event.data).items():
                samples[resource, metric] = _Sample(1, value, value, value, value).after(
                    samples.get((resource, metric))
                )
        for resource, seen in activity.items():
            here = self.resources.c.resource == resource
            row = (connection.execute(select(self.resources).where(here))).one_or_none()
            known = _Activity(*row[1:]) if row else None
            connection.execute(delete(self.resources).where(here))
            connection.execute(insert(self.resources).values((resource, *seen.after(known))))
        for (resource, metric), sample in samples.items():
            here = (self.samples.c.resource == resource) & (self.samples.c.metric == metric)
            row = (connection.execute(select(self.samples).where(here))).one_or_none()
            before = _Sample(*row[2:]) if row else None
            connection.execute(delete(self.samples).where(here))
            connection.execute(
                insert(self.samples).values((resource, metric, *sample.after(before)))
            )


class _Activity(NamedTuple):
    """Columns of `resource_activity` behind its key."""

    events: int
    first_us: int
    last_us: int
    last_type: str

    def after(self, earlier: _Activity | None) -> _Activity:
        if earlier is None:
            return self
        return _Activity(
            earlier.events + self.events,
            min(earlier.first_us, self.first_us),
            max(earlier.last_us, self.last_us),
            self.last_type,
        )


class _Sample(NamedTuple):
    """Columns of `resource_samples` behind its key."""

    samples: int
    total: float
    minimum: float
    maximum: float
    last: float

    def after(self, earlier: _Sample | None) -> _Sample:
        if earlier is None:
            return self
        return _Sample(
            earlier.samples + self.samples,
            earlier.total + self.total,
            min(earlier.minimum, self.minimum),
            max(earlier.maximum, self.maximum),
            self.last,
        )


def _numbers(data: dict[str, object]) -> dict[str, float]:
    nested = data.get("metrics")
    pairs = [*data.items(), *(nested.items() if isinstance(nested, dict) else ())]
    return {
        name: float(value)
        for name, value in pairs
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
