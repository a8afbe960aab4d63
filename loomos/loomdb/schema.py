"""The tables. Migrations make them; the head revision is `REVISION`.

`events`, `tiles`, `checkpoints` and `cosignatures` only grow: triggers refuse anything else. A
superuser can switch triggers off, which is why there are signed checkpoints and witnesses.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

REVISION = "0001"

metadata = MetaData()

_big = BigInteger().with_variant(Integer, "sqlite")

events = Table(
    "events",
    metadata,
    Column("position", _big, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False, unique=True),
    Column("stream", Text, nullable=False),
    Column("version", _big, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("schema", Integer, nullable=False),
    Column("time_us", _big, nullable=False),
    Column("entry", Text, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    UniqueConstraint("stream", "version"),
    Index("ix_events_event_type", "event_type", "position"),
)

tiles = Table(
    "tiles",
    metadata,
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("tile", _big, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
    Column("root", LargeBinary, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", _big, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    Column("signed_us", _big, nullable=False),
)

cosignatures = Table(
    "cosignatures",
    metadata,
    Column("size", _big, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("line", Text, nullable=False),
)

head = Table(
    "head",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("size", _big, nullable=False),
    Column("epoch", _big, nullable=False),
    Column("holder", Text, nullable=False),
    Column("lease_until_us", _big, nullable=False),
)
"""One row: how many events there are, and which sequencer may add more."""

inbox = Table(
    "inbox",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("request", Text, nullable=False),
    Column("submitted_us", _big, nullable=False),
    Column("outcome", Text),
    Index("ix_inbox_submitted", "submitted_us"),
)
"""Appends of processes that do not sequence, and what became of them."""

subjects = Table(
    "subjects",
    metadata,
    Column("reference", Text, primary_key=True),
    Column("name", Text, unique=True),
    Column("key", LargeBinary),
)
"""Keys of persons. An erased person keeps a row without name and key."""

projections = Table(
    "projections",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("position", _big, nullable=False),
)
"""How far each read model has come: the next position."""

GROWING = ("events", "tiles", "checkpoints", "cosignatures")
"""Tables that only grow."""
