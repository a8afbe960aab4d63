"""Numbers about resources: a read model of all events, for `get_performance_metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

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
)

from loomos.errors import NotFound
from loomos.loomdb.event_types import EventType
from loomos.loomdb.events import Event, microseconds, moment
from loomos.loomdb.projections import Projection


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """Samples of one number."""

    count: int
    mean: float
    minimum: float
    maximum: float
    last: float


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is known of a resource from its events."""

    resource_id: str
    events: int
    """How many are about it."""
    first_at: datetime
    last_at: datetime
    last_event_type: EventType
    values: dict[str, MetricSummary]
    """Per number that its events carried."""


class UnknownResource(NotFound, ValueError):
    """No event is about it."""


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


def read_metrics(connection: Connection, resource_id: str) -> Metrics:
    """What the read model says of a resource.

    Raises:
        UnknownResource: nothing.
    """
    resources, samples = ResourceMetrics.resources, ResourceMetrics.samples
    row = connection.execute(
        select(resources).where(resources.c.resource == resource_id)
    ).one_or_none()
    if row is None:
        raise UnknownResource(f"no event is about {resource_id!r}")
    values = connection.execute(
        select(samples).where(samples.c.resource == resource_id).order_by(samples.c.metric)
    ).all()
    return Metrics(
        resource_id=resource_id,
        events=row.events,
        first_at=moment(row.first_us),
        last_at=moment(row.last_us),
        last_event_type=EventType.of(row.last_type),
        values={
            v.metric: MetricSummary(
                count=v.samples,
                mean=v.total / v.samples,
                minimum=v.minimum,
                maximum=v.maximum,
                last=v.last,
            )
            for v in values
        },
    )
