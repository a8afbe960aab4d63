"""The supervisor: starts the stack's members, watches them, starts again what dies.

Members get SIGKILL when the supervisor dies, however it dies, so a stack never leaves orphans;
all state is on disk, and the next `loomos up` goes on from it. Start with
`python -m loomos.stack.supervisor FOLDER NODES SERVERS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from pathlib import Path
from typing import TextIO

import httpx

from loomos.runtime import run_process
from loomos.stack.members import CHECKOUT, Member, is_healthy, make_members
from loomos.stack.state import MemberState, StackState, StateDir, choose_ports

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
STABLE_S = 20.0
"""A member that has run for so long starts again without delay."""
STOP_TIMEOUT_S = 10.0
LOCK_PATIENCE_S = 1.0
FAST_POLL_S, SLOW_POLL_S = 0.3, 3.0

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_supervisor() -> None:
    """Runs in the child before exec; the setting survives exec (prctl(2))."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Watched:
    """A member and its process."""

    def __init__(self, member: Member, logs: Path) -> None:
        self.member = member
        self.process: Process | None = None
        self.healthy = False
        self.restarts = 0
        self._logs = logs

    @property
    def state(self) -> MemberState:
        """What is written down of it."""
        return MemberState(
            name=self.member.name,
            url=self.member.url,
            pid=self.process.pid if self.process else None,
            healthy=self.healthy,
            restarts=self.restarts,
        )

    async def keep_running(self) -> None:
        """Start the process, and again whenever it ends."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            await self._start()
            assert self.process is not None
            code = await self.process.wait()
            self.healthy = False
            log.warning("%s ended with %s; starting it again", self.member.name, code)
            lived_s = time.monotonic() - started
            backoff_s = FIRST_BACKOFF_S if lived_s > STABLE_S else backoff_s
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
            self.restarts += 1

    async def _start(self) -> None:
        with (self._logs / f"{self.member.name}.log").open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self.member.command,
                cwd=CHECKOUT,
                env={**os.environ, **self.member.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_supervisor,
            )

    async def stop(self) -> None:
        """End the process, gently first."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
            return
        log.warning("%s did not stop; killed", self.member.name)
        self.process.kill()
        await self.process.wait()


async def supervise(folder: StateDir, nodes: int, servers: int, stop: asyncio.Event) -> None:
    """Run the stack until asked to stop."""
    known = folder.read()
    ports = choose_ports(known.ports if known else {}, servers)
    settings = folder.settings(ports)
    members = make_members(folder, ports, nodes, servers)
    watched = [Watched(member, folder.logs) for member in members]

    def write() -> None:
        folder.write(
            StackState(
                supervisor_pid=os.getpid(),
                nodes=nodes,
                servers=servers,
                ports=ports,
                settings=settings,
                members=[w.state for w in watched],
            )
        )

    write()
    keepers = [asyncio.create_task(w.keep_running()) for w in watched]
    async with httpx.AsyncClient(timeout=3, trust_env=False) as client:
        while not stop.is_set():
            checks = await asyncio.gather(*(is_healthy(w.member, client) for w in watched))
            for w, healthy in zip(watched, checks, strict=True):
                w.healthy = healthy and w.process is not None and w.process.returncode is None
            write()
            poll_s = SLOW_POLL_S if all(w.healthy for w in watched) else FAST_POLL_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), poll_s)
    for keeper in keepers:
        keeper.cancel()
    # Workers first, while what they need still runs; then gateway, S3 and Temporal.
    names = [w.member.name for w in watched]
    first = [w for w in watched if w.member.name.startswith(("node-", "serve-"))]
    await asyncio.gather(*(w.stop() for w in first))
    for name in reversed(names):
        await next(w for w in watched if w.member.name == name).stop()
    for w in watched:
        w.process, w.healthy = None, False
    write()


def take_lock(folder: StateDir) -> TextIO | None:
    """The folder's lock. Who only looks whether it is taken holds it for an instant."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while (lock := folder.lock()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return lock


async def main(stop: asyncio.Event) -> None:
    """Be the supervisor of the folder named on the command line."""
    folder = StateDir(Path(sys.argv[1]))
    folder.prepare()
    lock = await asyncio.to_thread(take_lock, folder)
    if lock is None:
        log.error("another supervisor runs in %s", folder.root)
        return
    await supervise(folder, int(sys.argv[2]), int(sys.argv[3]), stop)


if __name__ == "__main__":
    run_process(main)
