"""The ledger under kill -9, SIGSTOP, restarts of its database and a full disk."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from loomos.loomdb import LoomDB, NewEvent
from loomos.loomdb.errors import LedgerFull
from loomos.loomdb.keys import write_secret
from loomos.loomdb.notes import SignerKey
from loomos.loomdb.policies import Policy
from tests.postgres import Postgres

WRITERS = 64
PROCESSES = 4


class Lab:
    """A database, writers, and sequencers that get killed."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.key = SignerKey.generate("test/log")
        write_secret(folder / "log.key", self.key.encode())
        self._writers: list[subprocess.Popen[bytes]] = []

    def sequencer(self) -> subprocess.Popen[bytes]:
        with (self.folder / "sequencer.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "workers.ledger"],
                env={
                    **os.environ,
                    "LOOMOS_LOOMDB__URL": self.url,
                    "LOOMOS_LOOMDB__LOG_KEY_FILE": str(self.folder / "log.key"),
                },
                stderr=log,
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        command = [sys.executable, "-m", "tests.durable.ledger_writers", self.url]
        with (self.folder / "writers.log").open("ab") as log:
            writers = [
                subprocess.Popen(
                    [*command, f"w{n}", str(WRITERS // PROCESSES), str(self.folder)], stderr=log
                )
                for n in range(PROCESSES)
            ]
        try:
            yield
            (self.folder / "stop").touch()
            for writer in writers:
                assert writer.wait(timeout=90) == 0, (self.folder / "writers.log").read_text()
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()

    def acknowledged(self) -> list[tuple[str, int, int]]:
        return [
            tuple(json.loads(line))
            for file in sorted(self.folder.glob("w*.jsonl"))
            for line in file.read_text().splitlines()
        ]

    async def check(self) -> int:
        """Nothing acknowledged is lost, nothing is there twice, nothing is left out."""
        async with LoomDB(self.url, may_lead=False) as db:
            size = await db.size()
            seen: list[int] = []
            ids: dict[str, int] = {}
            async for event in db.stream_events():
                seen.append(event.position)
                ids[event.event_id] = event.position
                if len(seen) == size:
                    break
            assert seen == list(range(size))
            assert len(ids) == size
            acknowledged = self.acknowledged()
            assert acknowledged
            assert all(ids.get(event_id) == position for event_id, position, _ in acknowledged)
            assert len({position for _, position, _ in acknowledged}) == len(acknowledged)
            report = await db.audit(Policy.for_log(self.key.verifier))
            assert report.findings == []
            assert report.size == size
        return size


@pytest.fixture
async def lab(db_url: str, tmp_path: Path) -> Lab:
    async with LoomDB(db_url):
        pass
    return Lab(db_url, tmp_path)


@asynccontextmanager
async def following(url: str) -> AsyncIterator[list[int]]:
    """A subscriber that runs along from the start; its positions."""
    positions: list[int] = []

    async def follow() -> None:
        async with LoomDB(url, may_lead=False) as db:
            async for event in db.stream_events():
                positions.append(event.position)

    task = asyncio.create_task(follow())
    try:
        yield positions
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(probe: Callable[[], bool], within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not probe():
            await asyncio.sleep(0.02)


async def kill_sequencers(lab: Lab, times: int, seed: int) -> None:
    """Kill -9 so often; each sequencer gets far enough to have acknowledged something."""
    chance = random.Random(seed)
    for _ in range(times):
        before = len(lab.acknowledged())
        sequencer = lab.sequencer()
        try:
            await until(lambda before=before: len(lab.acknowledged()) > before)
            await asyncio.sleep(chance.uniform(0, 0.2))
        finally:
            sequencer.kill()
            sequencer.wait()


@pytest.mark.parametrize(
    "kills", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
async def test_kill_9_of_the_sequencer_loses_nothing(lab: Lab, kills: int) -> None:
    with lab.writing():
        await kill_sequencers(lab, kills, seed=kills)
        last = lab.sequencer()
        await until(lambda: (lab.folder / "log.signed").exists())
        (lab.folder / "stop").touch()
        await asyncio.sleep(1.5)
    last.kill()
    last.wait()
    assert await lab.check() >= kills


@pytest.mark.parametrize("db_url", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    "restarts", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
async def test_immediate_restarts_of_postgresql_lose_nothing(
    lab: Lab, postgres: Postgres, restarts: int
) -> None:
    sequencer = lab.sequencer()
    try:
        with lab.writing():
            async with following(lab.url) as positions:
                for _ in range(restarts):
                    before = len(lab.acknowledged())
                    await until(lambda before=before: len(lab.acknowledged()) > before + 20)
                    await asyncio.to_thread(postgres.restart_immediately)
                before = len(lab.acknowledged())
                await until(lambda: len(lab.acknowledged()) > before + 20)
                (lab.folder / "stop").touch()
                await until(lambda: len(positions) >= len(lab.acknowledged()))
                assert positions == list(range(len(positions)))
    finally:
        sequencer.kill()
        sequencer.wait()
    await lab.check()


async def test_a_sequencer_that_slept_past_its_lease_writes_nothing(
    db_url: str, tmp_path: Path
) -> None:
    """A process appends, is stopped, another takes over, the first wakes with a queue."""
    script = (
        "import asyncio, sys\n"
        "from loomos.loomdb import LoomDB, NewEvent\n"
        "async def main():\n"
        f"    async with LoomDB({db_url!r}, lease_s=1.0) as db:\n"
        "        n = 0\n"
        "        while True:\n"
        "            (r,) = await db.append('old', [NewEvent(event_type='tick', data={'n': n})])\n"
        "            print(n, r.position, db._sequencer.epoch, flush=True)\n"
        "            n += 1\n"
        "            await asyncio.sleep(0.01)\n"
        "asyncio.run(main())\n"
    )
    old = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert old.stdout is not None
    try:
        for _ in range(20):
            old.stdout.readline()
        async with LoomDB(db_url, lease_s=1.0) as new:
            while True:
                old.send_signal(signal.SIGSTOP)
                if await new._sequencer.wait_to_lead(4):
                    break
                # On SQLite a process stopped inside its transaction holds the file's lock.
                old.send_signal(signal.SIGCONT)
                await asyncio.sleep(0.01)
            epoch = new._sequencer.epoch
            size = await new.size()
            placed = await new.append("new", [NewEvent(event_type="tick") for _ in range(50)])
            assert [r.position for r in placed] == list(range(size, size + 50))
            old.send_signal(signal.SIGCONT)
            # It goes on, but only through the one that leads now.
            await until_stream(new, "old", after=size + 50)
            assert new._sequencer.epoch == epoch
            old.kill()
            events = await new.query_events(limit=10_000)
            assert [e.position for e in events] == list(range(len(events)))
            assert [e.data["n"] for e in events if e.stream == "old"] == list(
                range(sum(e.stream == "old" for e in events))
            )
            report = await new.audit()
            assert report.ok
    finally:
        old.kill()
        old.wait()
        old.stdout.close()


async def until_stream(db: LoomDB, stream: str, after: int) -> None:
    async with asyncio.timeout(30):
        async for _ in db.stream_events(stream=stream, after=after - 1):
            return


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_full_disk_is_a_clean_error_and_the_tree_stays_with_the_rows(
    tmp_path: Path,
) -> None:
    key = SignerKey.generate("test/log")
    with small_disk(tmp_path / "small", "3m") as folder:
        async with LoomDB(f"sqlite:///{folder / 'loom.db'}", log_key=key) as db:
            ballast = folder / "ballast"
            ballast.write_bytes(bytes(1_000_000))
            acknowledged = 0
            with pytest.raises(LedgerFull, match="disk is full"):
                while True:
                    events = [NewEvent(event_type="tick", data={"x": "y" * 500})] * 20
                    acknowledged += len(await db.append("s", events))
            assert await db.size() == acknowledged > 0
            ballast.unlink()
            async with asyncio.timeout(20):
                await db.append("s", [NewEvent(event_type="tick")], expected_version=acknowledged)
            assert await db.size() == acknowledged + 1
            assert await db.ledger.sign() is not None
            report = await db.audit(Policy.for_log(key.verifier))
            assert report.findings == []
            assert report.signed_size == acknowledged + 1


@pytest.mark.parametrize(
    "count", [16_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
async def test_a_subscriber_sees_every_event_once_while_64_write(db_url: str, count: int) -> None:
    """The events that others lose: sequence order is commit order here."""
    batch = 125
    async with LoomDB(db_url) as db, LoomDB(db_url, may_lead=False) as other:

        async def write(number: int) -> None:
            events = [NewEvent(event_type="tick")] * batch
            for _ in range(count // batch // WRITERS):
                await db.append(f"w{number}", events)

        total = count // batch // WRITERS * batch * WRITERS

        async def follow(reader: LoomDB) -> None:
            wanted = 0
            async for event in reader.stream_events():
                assert event.position == wanted
                wanted += 1
                if wanted == total:
                    return

        await asyncio.gather(follow(db), follow(other), *(write(n) for n in range(WRITERS)))
        assert await db.size() == total
