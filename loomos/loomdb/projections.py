"""Read models: tables computed from events, caught up in order, rebuilt at will.

A projection's rows and its position change in one transaction, so each event counts once, however
often a process dies. Two processes that run the same projection do not disturb each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from sqlalchemy import (
    Connection,
    MetaData,
    insert,
    select,
    update,
)

from loomos.loomdb.events import Event
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
