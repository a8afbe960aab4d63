"""The warm process that forks ranks, at its edges."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from activities.rank_host import RankHost
from loomos.errors import AttemptFailed


async def children_of(host: RankHost) -> list[psutil.Process]:
    assert host._process is not None
    return psutil.Process(host._process.pid).children()


async def until_no_children(host: RankHost) -> None:
    async with asyncio.timeout(10):
        while await children_of(host):
            await asyncio.sleep(0.05)


async def test_who_gives_up_waiting_leaves_no_process_and_the_host_goes_on(
    rank_host: RankHost, tmp_path: Path
) -> None:
    asking = asyncio.create_task(rank_host.run("train", tmp_path / "none.json", tmp_path))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until_no_children(rank_host)
    process = await rank_host.run("train", tmp_path / "none.json", tmp_path)
    async with asyncio.timeout(20):
        assert await process.exit_code == 1
    assert "none.json" in (tmp_path / "node.log").read_text()


async def test_a_dead_host_fails_what_it_ran_and_is_started_again(tmp_path: Path) -> None:
    host = RankHost()
    await host.start()
    assert host._process is not None
    host._process.kill()
    with pytest.raises(AttemptFailed, match="rank host died"):
        await host.run("train", tmp_path / "none.json", tmp_path)
    process = await host.run("train", tmp_path / "none.json", tmp_path)
    async with asyncio.timeout(20):
        assert await process.exit_code == 1
    await host.close()
