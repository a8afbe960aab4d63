"""What LoomDB keeps and forgets, on SQLite and on PostgreSQL: persons, proofs, backups, guards."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection

from loomos.errors import InvalidInput, NotFound
from loomos.loomdb import AuditContext, LoomDB, NewEvent
from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.errors import HistoryChanged, LedgerUnavailable
from loomos.loomdb.events import new_event_ids
from loomos.loomdb.merkle import leaf_hash, root_of
from loomos.loomdb.metrics import ResourceMetrics
from loomos.loomdb.notes import SignerKey
from loomos.loomdb.policies import Policy
from loomos.loomdb.schema import metadata
from tests.events import ALICE, CONTROL, numbered

# --- persons ------------------------------------------------------------------------------------


async def test_erasing_a_person_leaves_every_hash(db: LoomDB, tmp_path: Path) -> None:
    await db.log_event("signup", {"plan": "free"}, ALICE, personal={"email": "alice@example.org"})
    await db.log_event("signup", {"plan": "pro"}, AuditContext(user_id="bob"))
    await db.ledger.sign()
    before = await db.ledger.root(2)
    (alice, _) = await db.query_events(event_type="signup")
    assert alice.data == {"plan": "free", "email": "alice@example.org"}
    for secret in ("alice", "192.0.2.7", "example.org"):
        assert secret not in alice.entry
    await db.backup_database(tmp_path / "before.db")

    key = (await db._subjects.find("alice")).key  # type: ignore[union-attr]
    await db.erase_subject("alice", CONTROL)
    if db.url.startswith("sqlite"):
        path = db.url.removeprefix("sqlite:///")
        for file in (path, f"{path}-wal"):
            assert key not in Path(file).read_bytes(), "the key's bytes are still there"

    alice, bob = await db.query_events(event_type="signup")
    assert (alice.data, alice.context, alice.is_erased) == ({"plan": "free"}, None, True)
    assert bob.context == AuditContext(user_id="bob")
    assert await db.query_events(user_id="alice") == []
    assert await db.ledger.root(2) == before
    assert (await db.audit()).ok
    with pytest.raises(NotFound):
        await db.erase_subject("alice", CONTROL)
    await db.log_event("signup", {"plan": "again"}, ALICE)
    again = await db.query_events(user_id="alice")
    assert [e.data for e in again] == [{"plan": "again"}]
    await db.backup_database(tmp_path / "after.db")
    async with LoomDB(f"sqlite:///{tmp_path / 'new.db'}") as new:
        # The older backup has the key; the newer one says that it was destroyed.
        await new.restore_database(tmp_path / "before.db")
        assert (await new.event_at(0)).context == ALICE
        await new.restore_database(tmp_path / "after.db")
        restored = await new.query_events(event_type="signup")
        assert [e.is_erased for e in restored] == [True, False, False]


# --- the ledger ---------------------------------------------------------------------------------


async def test_every_event_is_a_leaf_with_proofs(db: LoomDB) -> None:
    await db.append("s", numbered(700))
    note = await db.ledger.sign()
    assert note is not None
    key = db.ledger.verifier
    assert key is not None
    policy = Policy.for_log(key)
    checkpoint = Checkpoint.parse_text(note.text)
    entries = [e.entry.encode() for e in await db.query_events(limit=1000)]
    assert checkpoint.root == root_of([leaf_hash(e) for e in entries])
    for position in (0, 1, 255, 256, 511, 512, 698, 699):
        bundle = await db.ledger.prove(position)
        assert bundle.verify(entries[position], policy) == checkpoint
    with pytest.raises(NotFound, match="no event at position 700"):
        await db.ledger.prove(700)


async def test_the_tables_only_grow(db: LoomDB, db_url: str) -> None:
    await db.append("s", numbered(300))
    await db.ledger.sign()
    tables = ("events", "tiles", "checkpoints")
    for table in tables:
        for statement in (f"UPDATE {table} SET {_column(table)}", f"DELETE FROM {table}"):
            with pytest.raises(Exception, match="only grows"):
                await db._backend.write(lambda c, s=statement: c.exec_driver_sql(s))
    if db_url.startswith("postgres"):
        with pytest.raises(Exception, match="only grows"):
            await db._backend.write(lambda c: c.exec_driver_sql("TRUNCATE events"))
    assert (await db.audit()).ok


def _column(table: str) -> str:
    return {"events": "version = 1", "tiles": "root = hashes", "checkpoints": "note = ''"}[table]


async def test_the_migrations_make_what_the_code_expects(db: LoomDB) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def compare(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert await db._backend.read(compare) == []


async def test_a_newer_key_memory_refuses_an_older_database(db_url: str, tmp_path: Path) -> None:
    key = SignerKey.generate("test/log")
    memory = tmp_path / "signed"
    async with LoomDB(db_url, log_key=key, memory_file=memory) as db:
        await db.append("s", numbered(2))
        await db.ledger.sign()
        await db.backup_database(tmp_path / "old.db")
        await db.append("s", numbered(2))
        await db.ledger.sign()
    fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
    async with LoomDB(fresh, log_key=key, memory_file=memory) as db:
        with pytest.raises(HistoryChanged, match="2 entries, but 4 were signed"):
            await db.restore_database(tmp_path / "old.db")
        await db.restore_database(tmp_path / "old.db", accept_loss=True)
        await db.append("s", numbered(5))
        with pytest.raises(HistoryChanged, match="not those that the key signed"):
            await db.ledger.sign()
        assert await db.ledger.checkpoint_of(7) is None


async def test_a_damaged_backup_is_not_restored(db: LoomDB, tmp_path: Path) -> None:
    await db.append("s", numbered(300))
    path = tmp_path / "backup.db"
    await db.backup_database(path)
    with pytest.raises(InvalidInput, match="there already"):
        await db.backup_database(path)
    content = path.read_bytes()
    place = content.index(b'"data":{"n":7}')
    path.write_bytes(content[:place] + b'"data":{"n":8}' + content[place + 14 :])
    async with LoomDB(f"sqlite:///{tmp_path / 'new.db'}") as new:
        with pytest.raises(HistoryChanged, match="event 7 "):
            await new.restore_database(path)
        assert await new.size() == 0


async def test_a_restore_goes_on_where_the_database_ends(db: LoomDB, tmp_path: Path) -> None:
    await db.append("s", numbered(3000))
    await db.backup_database(tmp_path / "first.db")
    await db.append("s", numbered(2500))
    await db.ledger.sign()
    await db.backup_database(tmp_path / "second.db")
    async with LoomDB(f"sqlite:///{tmp_path / 'new.db'}") as new:
        await new.restore_database(tmp_path / "first.db")
        await new.restore_database(tmp_path / "second.db")
        await new.restore_database(tmp_path / "second.db")
        assert await new.size() == 5500
        key = db.ledger.verifier
        assert key is not None
        report = await new.audit(Policy.for_log(key))
        assert report.ok
        assert report.signed_size == 5500
        await new.append("s", numbered(1), expected_version=5500)
        with pytest.raises(HistoryChanged, match="nothing to restore"):
            await new.restore_database(tmp_path / "second.db")
        await new.backup_database(tmp_path / "longer.db")
    async with LoomDB(f"sqlite:///{tmp_path / 'other.db'}") as other:
        await other.append("else", numbered(3))
        with pytest.raises(HistoryChanged, match="differ in their first 3"):
            await other.restore_database(tmp_path / "second.db")


def test_new_ids_are_version_7_and_grow() -> None:
    ids = [i for count in (1, 1, 9_997, 1) for i in new_event_ids(count)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 10_000
    shape = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(shape.fullmatch(i) for i in ids)


def test_a_script_that_never_closes_its_database_ends(tmp_path: Path) -> None:
    script = (
        "import asyncio\n"
        "from loomos.loomdb import LoomDB\n"
        "async def main():\n"
        f"    db = LoomDB('sqlite:///{tmp_path / 'loom.db'}')\n"
        "    await db.log_event('tick', {})\n"
        "    print(await db.size())\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


async def test_a_file_that_stays_locked_is_unavailable_and_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loomos.loomdb.sqlite.BUSY_TIMEOUT_S", 0.3)
    async with LoomDB(f"sqlite:///{tmp_path / 'loom.db'}") as db:
        await db.append("s", numbered(1))
        other = sqlite3.connect(tmp_path / "loom.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable):
            await db.append("s", numbered(1), timeout_s=1)
        with pytest.raises(LedgerUnavailable, match="locked"):
            await db.project(ResourceMetrics())
        other.execute("ROLLBACK")
        other.close()
        event = NewEvent(event_type="tick", event_id="after", data={"n": 0})
        async with asyncio.timeout(10):
            await db.append("s", [event])
        found = await db.query_events()
        assert [e.position for e in found] == list(range(len(found)))
        assert len([e for e in found if e.event_id == "after"]) == 1


@pytest.mark.parametrize("db_url", ["postgres"], indirect=True)
async def test_the_writer_role_can_only_add(db_url: str) -> None:
    async with LoomDB(db_url):
        pass
    key = SignerKey.generate("test/log")
    async with LoomDB(f"{db_url}?role=loomdb_writer", log_key=key) as db:
        await db.append("s", numbered(300), ALICE)
        await db.ledger.sign()
        assert (await db.get_performance_metrics("s")).values["n"].maximum == 299
        await db.erase_subject("alice", CONTROL)
        for statement in (
            "UPDATE events SET entry = ''",
            "DELETE FROM tiles",
            "TRUNCATE checkpoints",
            "ALTER TABLE events DISABLE TRIGGER ALL",
            "DROP TABLE events",
        ):
            with pytest.raises(Exception, match=r"permission denied|must be owner"):
                await db._backend.write(lambda c, s=statement: c.exec_driver_sql(s))
        assert (await db.audit(Policy.for_log(key.verifier))).ok


async def test_a_row_that_the_sequencer_did_not_write_stops_it(db: LoomDB) -> None:
    await db.append("s", numbered(2))
    forge = (
        "INSERT INTO events SELECT 2, 'forged', 'x', 1, event_type, schema, time_us, entry, leaf "
        "FROM events WHERE position = 0"
    )
    await db._backend.write(lambda c: c.exec_driver_sql(forge))
    with pytest.raises(HistoryChanged, match="behind its 2 entries"):
        await db.append("s", numbered(1))
    assert await db.size() == 2
    assert [f.first for f in (await db.audit()).findings] == [2]


async def test_a_restore_that_breaks_off_leaves_tree_and_rows_alike(
    db: LoomDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.append("s", numbered(5000))
    await db.backup_database(tmp_path / "backup.db")
    from loomos.loomdb import backups

    bring = backups._bring

    def break_off(source: Connection, target: Connection, since: int) -> int:
        if since >= 2000:
            raise RuntimeError("cut off")
        return bring(source, target, since)

    async with LoomDB(f"sqlite:///{tmp_path / 'new.db'}") as new:
        monkeypatch.setattr(backups, "_bring", break_off)
        with pytest.raises(RuntimeError, match="cut off"):
            await new.restore_database(tmp_path / "backup.db")
        assert await new.size() == 2000
        monkeypatch.undo()
        await new.restore_database(tmp_path / "backup.db")
        (placed,) = await new.append("s", numbered(1), expected_version=5000)
        assert placed.position == 5000
        assert (await new.audit()).ok
