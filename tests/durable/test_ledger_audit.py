"""Changes by a superuser, who can switch every trigger off: found, and located."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from loomos.loomdb import LoomDB
from loomos.loomdb.audit import AuditReport, audit
from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.merkle import leaf_hash
from loomos.loomdb.notes import Note, SignerKey
from loomos.loomdb.policies import Policy
from loomos.loomdb.static import audit_folder, export_folder, tile_path

SIZE = 1_400
CHECKPOINTS = (1, 200, 256, 700, 1_100, SIZE)
KEY = SignerKey.generate("test/log")
POLICY = Policy.for_log(KEY.verifier)


async def fill(db: LoomDB) -> None:
    """Events of several streams with some checkpoints on the way."""
    size = 0
    for until in CHECKPOINTS:
        for start in range(size, until, 100):
            await db.batch_log_events(
                [
                    {"event_type": "tick", "data": {"n": n}, "event_id": f"event-{n}"}
                    for n in range(start, min(start + 100, until))
                ],
                stream=f"s{start % 3}",
            )
        size = until
        await db.ledger.sign()


class Undo(Exception):
    """Ends a transaction that must leave nothing behind."""


class Superuser:
    """SQL that no trigger stops; undone afterwards."""

    def __init__(self, db: LoomDB, is_postgres: bool) -> None:
        self._db, self._is_postgres = db, is_postgres

    async def try_out(self, change: Callable[[Superuser], Any]) -> tuple[Any, AuditReport]:
        """Make a change, audit, undo. Returns what the change says and the report."""
        found: list[Any] = []

        def work(connection: Connection) -> None:
            self._connection = connection
            self._switch_triggers_off()
            said = change(self)
            found.extend((said, audit(connection, POLICY)))
            raise Undo

        with pytest.raises(Undo):
            await self._db._backend.write_once(work)
        return found[0], found[1]

    def _switch_triggers_off(self) -> None:
        if self._is_postgres:
            self.sql("SET LOCAL session_replication_role = replica")
            return
        rows = self._connection.exec_driver_sql(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).all()
        for (name,) in rows:
            self.sql(f"DROP TRIGGER {name}")

    def sql(self, statement: str, **values: Any) -> None:
        from sqlalchemy import text

        self._connection.execute(text(statement), values)

    def one(self, statement: str, **values: Any) -> Any:
        from sqlalchemy import text

        return self._connection.execute(text(statement), values).one()


@dataclass(frozen=True)
class Spot:
    """Where a change was made: what must be in a finding."""

    where: set[str]
    first: int
    last: int


# --- mutations ----------------------------------------------------------------------------------


def flip_entry(su: Superuser, chance: random.Random) -> Spot:
    """One character of an entry becomes another."""
    position = chance.randrange(SIZE)
    (entry,) = su.one("SELECT entry FROM events WHERE position = :p", p=position)
    place = chance.randrange(len(entry))
    other = chr(ord(entry[place]) ^ 1)
    changed = entry[:place] + other + entry[place + 1 :]
    su.sql("UPDATE events SET entry = :e WHERE position = :p", e=changed, p=position)
    return Spot({"event"}, position, position)


def flip_entry_and_leaf(su: Superuser, chance: random.Random) -> Spot:
    """An entry is changed and hashed anew, so that row and leaf agree."""
    position = chance.randrange(SIZE)
    (entry,) = su.one("SELECT entry FROM events WHERE position = :p", p=position)
    changed = entry.replace('"n":', '"m":')
    su.sql(
        "UPDATE events SET entry = :e, leaf = :h WHERE position = :p",
        e=changed,
        h=leaf_hash(changed.encode()),
        p=position,
    )
    return Spot({"event", "history"}, position, position)


def flip_leaf(su: Superuser, chance: random.Random) -> Spot:
    position = chance.randrange(SIZE)
    (leaf,) = su.one("SELECT leaf FROM events WHERE position = :p", p=position)
    su.sql("UPDATE events SET leaf = :h WHERE position = :p", h=flipped(leaf, chance), p=position)
    return Spot({"event"}, position, position)


def flip_column(su: Superuser, chance: random.Random) -> Spot:
    """A column no longer says what the entry says."""
    position = chance.randrange(SIZE)
    column, value = chance.choice(
        [("event_type", "'tock'"), ("time_us", "time_us + 1"), ("schema", "2"), ("version", "9999")]
    )
    su.sql(f"UPDATE events SET {column} = {value} WHERE position = :p", p=position)
    return Spot({"event"}, position, position)


def delete_row(su: Superuser, chance: random.Random) -> Spot:
    position = chance.randrange(SIZE)
    su.sql("DELETE FROM events WHERE position = :p", p=position)
    return Spot({"event", "history"}, position, position)


def insert_row(su: Superuser, chance: random.Random) -> Spot:
    """A row behind the end, or a copy in place of another that moves behind the end."""
    position = chance.choice([SIZE, SIZE + chance.randrange(1, 500)])
    su.sql(
        "INSERT INTO events SELECT :p, 'forged', stream, 99999, event_type, schema, time_us, "
        "entry, leaf FROM events WHERE position = 0",
        p=position,
    )
    if chance.random() < 0.5:
        su.sql("UPDATE head SET size = :s", s=position + 1)
        if position == SIZE:
            return Spot({"event"}, 0, position)
        return Spot({"event"}, SIZE, SIZE)
    return Spot({"event"}, position, position)


def reorder(su: Superuser, chance: random.Random) -> Spot:
    """Two events change places, with all their columns."""
    one, other = sorted(chance.sample(range(SIZE), 2))
    su.sql("UPDATE events SET position = -1 WHERE position = :p", p=one)
    su.sql("UPDATE events SET position = :q WHERE position = :p", p=other, q=one)
    su.sql("UPDATE events SET position = :p WHERE position = -1", p=other)
    return Spot({"event", "history"}, one, other)


def truncate(su: Superuser, chance: random.Random) -> Spot:
    """The end is cut off, the head with it."""
    size = chance.randrange(SIZE)
    su.sql("DELETE FROM events WHERE position >= :s", s=size)
    su.sql("DELETE FROM tiles WHERE level = 0 AND (tile + 1) * 256 > :s", s=size)
    su.sql("UPDATE head SET size = :s", s=size)
    return Spot({"history"}, size, SIZE - 1)


def flip_tile(su: Superuser, chance: random.Random) -> Spot:
    """A bit of a node."""
    tile = chance.randrange(SIZE // 256)
    (hashes,) = su.one("SELECT hashes FROM tiles WHERE level = 0 AND tile = :t", t=tile)
    su.sql(
        "UPDATE tiles SET hashes = :h WHERE level = 0 AND tile = :t",
        h=flipped(hashes, chance),
        t=tile,
    )
    return Spot({"tile", "event"}, tile * 256, tile * 256 + 255)


def flip_tile_root(su: Superuser, chance: random.Random) -> Spot:
    tile = chance.randrange(SIZE // 256)
    (root,) = su.one("SELECT root FROM tiles WHERE level = 0 AND tile = :t", t=tile)
    su.sql(
        "UPDATE tiles SET root = :h WHERE level = 0 AND tile = :t", h=flipped(root, chance), t=tile
    )
    return Spot({"tile"}, tile * 256, tile * 256 + 255)


def delete_tile(su: Superuser, chance: random.Random) -> Spot:
    tile = chance.randrange(SIZE // 256)
    su.sql("DELETE FROM tiles WHERE level = 0 AND tile = :t", t=tile)
    return Spot({"tile"}, tile * 256, tile * 256 + 255)


def insert_tile(su: Superuser, chance: random.Random) -> Spot:
    level, tile = chance.choice([(0, SIZE // 256), (0, SIZE // 256 + 3), (1, 0), (2, 1)])
    su.sql(
        "INSERT INTO tiles SELECT :l, :t, hashes, root FROM tiles WHERE level = 0 AND tile = 0",
        l=level,
        t=tile,
    )
    span = 256 ** (level + 1)
    return Spot({"tile"}, tile * span, (tile + 1) * span - 1)


def reorder_tiles(su: Superuser, chance: random.Random) -> Spot:
    one, other = sorted(chance.sample(range(SIZE // 256), 2))
    for old, new in ((one, -1), (other, one), (-1, other)):
        su.sql("UPDATE tiles SET tile = :n WHERE level = 0 AND tile = :o", o=old, n=new)
    return Spot({"tile", "event"}, one * 256, other * 256 + 255)


def flip_checkpoint(su: Superuser, chance: random.Random) -> Spot:
    size = chance.choice(CHECKPOINTS)
    (note,) = su.one("SELECT note FROM checkpoints WHERE size = :s", s=size)
    place = chance.choice([i for i, c in enumerate(note) if c.isalnum()])
    changed = note[:place] + ("A" if note[place] != "A" else "B") + note[place + 1 :]
    su.sql("UPDATE checkpoints SET note = :n WHERE size = :s", n=changed, s=size)
    return Spot({"checkpoint"}, size, size)


def forge_checkpoint(su: Superuser, chance: random.Random) -> Spot:
    """A checkpoint that another key signed, over a tree that never was."""
    size = chance.choice(CHECKPOINTS)
    forged = Checkpoint("test/log", size, chance.randbytes(32))
    note = forged.sign(SignerKey.generate("test/log")).encode()
    su.sql("UPDATE checkpoints SET note = :n WHERE size = :s", n=note, s=size)
    return Spot({"checkpoint"}, size, size)


MUTATIONS = (
    flip_entry,
    flip_entry_and_leaf,
    flip_leaf,
    flip_column,
    delete_row,
    insert_row,
    reorder,
    truncate,
    flip_tile,
    flip_tile_root,
    delete_tile,
    insert_tile,
    reorder_tiles,
    flip_checkpoint,
    forge_checkpoint,
)


def flipped(value: bytes, chance: random.Random) -> bytes:
    changed = bytearray(value)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def is_located(spot: Spot, report: AuditReport) -> bool:
    """A finding of a fitting kind overlaps the spot, and is not just `somewhere in the log`."""
    return any(
        f.where in spot.where
        and f.first <= spot.last
        and f.last >= spot.first
        and f.last - f.first < max(600, spot.last - spot.first + 1)
        for f in report.findings
    )


@pytest.mark.parametrize("changes", [60, pytest.param(500, marks=pytest.mark.slow)])
async def test_each_random_change_by_a_superuser_is_found_and_located(
    db_url: str, changes: int
) -> None:
    chance = random.Random(2)
    async with LoomDB(db_url, log_key=KEY) as db:
        await fill(db)
        assert (await db.audit(POLICY)).ok
        await db.ledger.stop()
        await db._sequencer.stop()
        superuser = Superuser(db, db_url.startswith("postgres"))
        missed: list[str] = []
        for number in range(changes):
            mutation = MUTATIONS[number % len(MUTATIONS)]
            spot, report = await superuser.try_out(lambda su, m=mutation: m(su, chance))
            if not is_located(spot, report):
                missed.append(f"{mutation.__name__} at {spot}: {report.findings[:3]}")
        assert missed == []
        report = await db.audit(POLICY)
        assert report.ok, "the changes were not undone"
        assert (report.size, report.signed_size) == (SIZE, SIZE)
        assert report.checkpoints == len(CHECKPOINTS)


async def test_anchors_tell_of_a_truncation_with_all_its_checkpoints(db_url: str) -> None:
    """Who removes events and the checkpoints over them is caught by whoever kept one."""
    async with LoomDB(db_url, log_key=KEY) as db:
        await fill(db)
        note = await db.ledger.checkpoint()
        assert note is not None
        newest = Checkpoint.parse_text(note.text)
        await db.ledger.stop()
        await db._sequencer.stop()
        superuser = Superuser(db, db_url.startswith("postgres"))

        def cut(su: Superuser) -> AuditReport:
            truncate(su, random.Random(3))
            (size,) = su.one("SELECT size FROM head")
            su.sql("DELETE FROM checkpoints WHERE size > :s", s=size)
            return audit(su._connection, POLICY, [newest])

        with_anchor, without = await superuser.try_out(cut)
        assert without.ok
        assert [f.where for f in with_anchor.findings] == ["history"]
        assert "truncated or restored from an older backup" in with_anchor.findings[0].message
        other = replace(newest, root=bytes(32))
        rewritten = await db.audit(POLICY, [other])
        assert rewritten.findings[0].where == "history"
        assert "known elsewhere" in rewritten.findings[0].message


async def test_an_export_is_a_static_log_that_audits_offline(tmp_path: Path) -> None:
    async with LoomDB(f"sqlite:///{tmp_path / 'loom.db'}", log_key=KEY) as db:
        await fill(db)
        folder = tmp_path / "export"
        assert await export_folder(db, folder, lambda done, of: None) == SIZE
        note = await db.ledger.checkpoint()
    assert note is not None

    def check() -> AuditReport:
        return audit_folder(folder, POLICY, [], lambda done, of: None)

    assert check().ok
    assert (check().size, check().signed_size) == (SIZE, SIZE)
    assert Note.parse((folder / "checkpoint").read_text()) == note
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert "tile/0/000" in names
    assert "tile/0/005.p/120" in names
    assert "tile/1/000.p/5" in names
    assert "tile/entries/004" in names
    assert len((folder / "tile/0/000").read_bytes()) == 8192

    chance = random.Random(4)
    for name in names:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(flipped(content, chance))
        changed = audit_or_error(check)
        path.unlink()
        missing = audit_or_error(check)
        path.write_bytes(content)
        assert not changed, f"a flipped bit in {name} was not found"
        assert not missing, f"{name} was removed and not missed"
    assert check().ok


def audit_or_error(check: Callable[[], AuditReport]) -> bool:
    from loomos.errors import LoomOSError

    try:
        return check().ok
    except LoomOSError:
        return False


def test_tile_paths_are_those_of_the_specification() -> None:
    assert tile_path("0", 1234067) == "tile/0/x001/x234/067"
    assert tile_path("entries", 0, 17) == "tile/entries/000.p/17"
    assert tile_path("2", 1000) == "tile/2/x001/000"
