"""A real stack whose disk fills up, whose members stop, and whose port a stranger takes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loomos.client.http import LoomOSClient
from loomos.jobs.states import JobState
from loomos.stack.state import StackState
from tests.listeners import listening
from tests.stack import Stack, manifest, running_stack, tiny_job

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk; only root may have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("cannot mount a disk of its own")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def states(stack: Stack) -> StackState:
    return stack.state


async def test_a_full_disk_is_said_so_and_outlived(disk: Path) -> None:
    with running_stack(disk / ".loomos") as stack:
        pids = {m.name: m.pid for m in stack.state.members}
        ballast = disk / "ballast"
        with ballast.open("ab", buffering=0) as file, pytest.raises(OSError) as full:
            while True:
                file.write(bytes(1 << 20))
        assert full.value.errno == errno.ENOSPC
        state = await stack.eventually(
            lambda: states(stack), lambda s: s.problem and not s.members[1].healthy
        )
        assert "is full" in state.problem
        shown = stack.loomos("status", check=False)
        assert shown.returncode == 1
        assert "is full" in shown.stdout and "s3 does not store" in shown.stdout
        ballast.unlink()
        state = await stack.eventually(lambda: states(stack), lambda s: s.is_healthy, 180)
        assert state.supervisor_pid == stack.state.supervisor_pid
        kept = {m.name: m.pid for m in state.members if m.name != "s3"}
        assert kept == {name: pid for name, pid in pids.items() if name != "s3"}
        async with stack.client() as client:
            job = await client.submit_job_from_manifest(manifest(tiny_job("after", max_steps=10)))
            done = await stack.until(client, job.job_id, JobState.COMPLETED, JobState.FAILED)
            assert done.state == JobState.COMPLETED


@pytest.mark.parametrize("member", ["s3", "gateway", "ledger"])
async def test_a_member_that_was_stopped_is_started_again(stack: Stack, member: str) -> None:
    await stack.eventually(lambda: states(stack), lambda s: s.is_healthy)
    before = stack.pid(member)
    os.kill(before, signal.SIGSTOP)
    await stack.eventually(
        lambda: states(stack), lambda s: s.is_healthy and stack.pid(member) != before, 180
    )


async def test_a_stranger_at_the_gateway_s_port_gets_nothing_and_ends_nothing(
    stack: Stack, client: LoomOSClient
) -> None:
    state = await stack.eventually(lambda: states(stack), lambda s: s.is_healthy)
    os.kill(state.supervisor_pid, signal.SIGSTOP)
    gateway = psutil.Process(stack.pid("gateway"))
    gateway.kill()
    while gateway.status() != psutil.STATUS_ZOMBIE:  # until then the port is its own
        await asyncio.sleep(0.01)
    async with listening(lambda _: (200, b"[]"), state.ports["gateway"]) as stranger:
        os.kill(state.supervisor_pid, signal.SIGCONT)
        found = await stack.eventually(
            lambda: states(stack), lambda s: any("ended" in m.problem for m in s.members)
        )
        assert found.supervisor_pid == state.supervisor_pid
        refused = await asyncio.to_thread(stack.loomos, "jobs", "list", check=False)
        assert refused.returncode == 2
        assert "no token was sent" in refused.stderr
        assert not any(b"uthorization" in request for request in stranger.requests)
    await stack.eventually(lambda: states(stack), lambda s: s.is_healthy)
    assert (await client.list_jobs(limit=1)).jobs is not None
