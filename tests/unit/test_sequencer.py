from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loomos.loomdb.backend import open_backend
from loomos.loomdb.sequencer import Sequencer

UNCLOSED = """
import asyncio
from loomos.core.loomdb import AuditContext, EventType, LoomDB

async def main():
    db = LoomDB()
    await db.log_event(EventType.MODEL_TRAINING_START, {"model": "m"}, AuditContext(user_id="u"))
    print(len(await db.query_events()))

asyncio.run(main())
"""


@pytest.mark.parametrize("turns", range(5))
async def test_a_follower_ends_though_it_is_cancelled_while_it_wakes(
    tmp_path: Path, turns: int
) -> None:
    """`asyncio.wait_for` of Python 3.11 forgets a cancellation that meets its result."""
    backend = open_backend(f"sqlite:///{tmp_path / 'loom.db'}")
    follower = Sequencer(backend, may_lead=False)
    following = asyncio.create_task(follower._run())
    for _ in range(10):
        await asyncio.sleep(0)
    follower._wake.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    following.cancel()
    _, pending = await asyncio.wait([following], timeout=2)
    follower._stopping = True
    follower._wake.set()
    await asyncio.wait([following])
    await backend.close()
    assert not pending, "goes on after its cancellation"


def test_a_program_that_does_not_close_its_database_ends(tmp_path: Path) -> None:
    environment = {**os.environ, "LOOMOS_LOOMDB__URL": f"sqlite:///{tmp_path / 'loom.db'}"}
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "1\n"
    assert done.stderr == ""
