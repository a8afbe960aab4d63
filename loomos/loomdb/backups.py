"""Backups: one SQLite file, which is itself a LoomDB, whichever database it was made of.

A backup can be audited like any other. Restoring audits it first, then appends to the database
what it lacks, in order, so that a restore that was cut off can be run again. Persons erased since
stay erased.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Connection, Table, insert, select, update

from loomos.errors import InvalidInput
from loomos.loomdb.audit import audit
from loomos.loomdb.backend import Backend
from loomos.loomdb.errors import HistoryChanged
from loomos.loomdb.event_types import EventType
from loomos.loomdb.merkle import TILE_HEIGHT
from loomos.loomdb.policies import Policy
from loomos.loomdb.schema import checkpoints, cosignatures, events, head, subjects, tiles
from loomos.loomdb.sqlite import SQLiteBackend
from loomos.loomdb.tree_store import load_tree

if TYPE_CHECKING:
    from loomos.loomdb.database import LoomDB

CHUNK = 2000
COPIED = (events, tiles, checkpoints, cosignatures, subjects)


async def back_up(source: Backend, path: Path) -> None:
    """Write everything of one moment into a new file.

    Raises:
        InvalidInput: the file is there already.
    """
    _check_path(path, wanted=False)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    target = SQLiteBackend(temporary)
    try:
        temporary.touch(mode=0o600)
        await target.migrate()
        await source.read(lambda connection: target.write_now(lambda to: _copy(connection, to)))
    finally:
        await target.close()
    for name in (temporary, path.parent):
        handle = os.open(name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    temporary.rename(path)
    temporary.with_name(f"{temporary.name}.migration").unlink(missing_ok=True)


def _check_path(path: Path, *, wanted: bool) -> None:
    if path.exists() and not wanted:
        raise InvalidInput(f"backup_path {str(path)!r} is there already; name another file")
    if wanted and not path.is_file():
        raise InvalidInput(f"backup_path {str(path)!r} does not exist")


def _copy(source: Connection, target: Connection) -> None:
    for table in COPIED:
        rows = source.execute(select(table).execution_options(yield_per=CHUNK))
        for part in rows.mappings().partitions(CHUNK):
            target.execute(insert(table), [dict(row) for row in part])
    size = source.execute(select(head.c.size)).scalar_one()
    target.execute(update(head).values(size=size))


async def restore(
    db: LoomDB, target: Backend, path: Path, policy: Policy | None, accept_loss: bool
) -> None:
    """Append what a backup has and the database lacks.

    Raises:
        InvalidInput: there is no such file.
        HistoryChanged: the backup is damaged, of another history, or too old.
        LedgerUnavailable: another process sequences meanwhile.
    """
    _check_path(path, wanted=True)
    backup = SQLiteBackend(path)
    try:
        report = await backup.read(lambda connection: audit(connection, policy))
        if report.findings:
            raise HistoryChanged(f"the backup is damaged: {report.findings[0].message}")
        last = db.ledger.last_signed()
        if last is not None and last.size > report.size and not accept_loss:
            raise HistoryChanged(
                f"the backup has {report.size} entries, but {last.size} were signed; restoring it "
                "would lose the rest. Find a newer one, or accept the loss and sign with a new key"
            )
        await db.import_history(
            lambda to, size: backup.read_now(lambda source: _bring(source, to, size))
        )
        await target.write(lambda to: backup.read_now(lambda source: _bring_subjects(source, to)))
    finally:
        await backup.close()


def _bring(source: Connection, target: Connection, since: int) -> int:
    """Append one chunk of events, with the tiles and checkpoints that belong to it.

    Returns:
        The target's new size.
    """
    size: int = source.execute(select(head.c.size)).scalar_one()
    if since > size:
        raise HistoryChanged(
            f"the database has {since} entries, the backup {size}: there is nothing to restore; "
            "to go back, restore into an empty database"
        )
    if load_tree(source, since).root() != load_tree(target, since).root():
        raise HistoryChanged(f"the backup and the database differ in their first {since} entries")
    end = min(since + CHUNK, size)
    position = events.c.position
    _insert(source, target, events, (position >= since) & (position < end))
    level = 0
    while end >> (TILE_HEIGHT * (level + 1)):
        shift = TILE_HEIGHT * (level + 1)
        tile = tiles.c.tile
        new = (tiles.c.level == level) & (tile >= since >> shift) & (tile < end >> shift)
        _insert(source, target, tiles, new)
        level += 1
    for table in (checkpoints, cosignatures):
        _insert(source, target, table, (table.c.size > since) & (table.c.size <= end))
    return end


def _bring_subjects(source: Connection, target: Connection) -> None:
    """Bring keys of persons, but of none who was erased before or after the backup."""
    erased = {
        json.loads(entry)["data"]["subject"]
        for entry in target.execute(
            select(events.c.entry).where(events.c.event_type == EventType.SUBJECT_ERASED)
        ).scalars()
    }
    for reference in erased:
        target.execute(
            update(subjects).where(subjects.c.reference == reference).values(name=None, key=None)
        )
    known = {row.reference: row.name for row in target.execute(select(subjects))}
    rows = [dict(row) for row in source.execute(select(subjects)).mappings()]
    new = [row for row in rows if row["reference"] not in known]
    for row in new:
        if row["reference"] in erased:
            row |= {"name": None, "key": None}
        elif row["name"] in known.values():
            row["name"] = None
    if new:
        target.execute(insert(subjects), new)


def _insert(
    source: Connection, target: Connection, table: Table, wanted: ColumnElement[bool]
) -> None:
    rows = [dict(row) for row in source.execute(select(table).where(wanted)).mappings()]
    if rows:
        target.execute(insert(table), rows)
