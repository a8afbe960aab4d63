"""The supervisor: starts the stack's members, watches them, starts again what dies or is sick.

A member is sick when it falls silent (hung, or stopped by a signal) or fails at what it is for
(`loomos.stack.health`) although what it needs is healthy. It is given time, then killed and started
again; each time it gets twice as long.

No failure of a file operation ends the supervisor: on a full disk the members run on, the state
says what is wrong, and nothing is judged sick until there is space again.

Members get SIGKILL when the supervisor dies, however it dies, so a stack never leaves orphans;
all state is on disk, and the next `loomos up` goes on from it. Start with
`python -m loomos.stack.supervisor FOLDER NODES SERVERS`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx

from loomos.pulse import READY
from loomos.pulse import VARIABLE as PULSE_VARIABLE
from loomos.retention.local import rotate_all
from loomos.runtime import run_process
from loomos.settings import load_settings
from loomos.stack import health
from loomos.stack.members import Member, make_members
from loomos.stack.ports import Ports
from loomos.stack.state import MemberState, StackState, StateDir

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
STABLE_S = 20.0
"""A member that has run for so long starts again without delay."""
STOP_TIMEOUT_S = 10.0
LOCK_PATIENCE_S = 1.0
FAST_POLL_S, SLOW_POLL_S = 0.3, 3.0
LEAST_FREE_BYTES = 4 * 1024 * 1024
"""With less room the disk counts as full."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a member may be sick before it is started again."""

    start_s: float = 300.0
    """Until it is healthy for the first time."""
    sick_s: float = 30.0
    """Once it was healthy."""
    failing_s: float = 20.0
    """Once it was healthy, while it answers promptly that it cannot do what it is for."""
    longest_s: float = 600.0
    """At most, however often it was started again for being sick."""
    silent_s: float = 6.0
    """Without a beat of its pulse for so long it counts as silent."""


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_supervisor() -> None:
    """Runs in the child before exec; the setting survives exec (prctl(2))."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Watched:
    """A member and its process."""

    def __init__(self, member: Member, logs: Path, patience: Patience = Patience()) -> None:
        self.member = member
        self.process: Process | None = None
        self.problem = "is being started"
        self.restarts = 0
        self._logs = logs
        self._patience = patience
        self._pulse: int | None = None
        self._beat_at = 0.0
        self._is_ready = False
        self._is_known_here = False
        self._was_healthy = self._is_failing = False
        self._sick_s = 0.0
        self._sick_restarts = 0

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problem

    @property
    def state(self) -> MemberState:
        """What is written down of it."""
        return MemberState(
            name=self.member.name,
            url=self.member.url,
            pid=self.process.pid if self.process else None,
            healthy=self.healthy,
            restarts=self.restarts,
            problem=self.problem,
        )

    async def keep_running(self) -> None:
        """Start the process, and again whenever it ends."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            try:
                await self._start()
                assert self.process is not None
                self.problem = f"ended with {await self.process.wait()}"
            except OSError as error:
                self.problem = f"cannot be started: {error}"
            log.warning("%s %s; starting it again", self.member.name, self.problem)
            lived_s = time.monotonic() - started
            backoff_s = FIRST_BACKOFF_S if lived_s > STABLE_S else backoff_s
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
            self.restarts += 1

    async def _start(self) -> None:
        environment = {**os.environ, **self.member.environment}
        # The member's settings are all in its environment; a context is for who calls.
        environment.pop("LOOMOS_CONTEXT", None)
        reading, writing = os.pipe()
        try:
            with (self._logs / f"{self.member.name}.log").open("ab") as output:
                self.process = await asyncio.create_subprocess_exec(
                    *self.member.command,
                    cwd=self.member.folder,
                    env=environment | {PULSE_VARIABLE: str(writing)},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=_die_with_supervisor,
                    pass_fds=(writing,) if self.member.has_pulse else (),
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        if self._pulse is not None:
            os.close(self._pulse)
        self._pulse, self._beat_at = reading, 0.0
        self._is_ready = self._is_known_here = self._was_healthy = False
        self._sick_s = 0.0

    async def look(self, client: httpx.AsyncClient) -> None:
        """Find out what is wrong with it, if anything is."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        problem, is_failing = self._listen() if self.member.has_pulse else "", False
        if not problem and not self._is_known_here:
            problem = health.stranger_at(process.pid, self.member.ports) or ""
            self._is_known_here = not problem
        if not problem and self.member.check is not None:
            problem = await health.ask(self.member.check, client)
            is_failing = bool(problem) and problem != health.SILENT
        if process is self.process and process.returncode is None:
            self.problem, self._is_failing = problem, is_failing

    def _listen(self) -> str:
        """What its pulse says is wrong."""
        with contextlib.suppress(BlockingIOError):
            if self._pulse is not None and (beats := os.read(self._pulse, 65536)):
                self._beat_at = time.monotonic()
                self._is_ready = beats.endswith(READY)
        if not self._beat_at:
            return "starts"
        if time.monotonic() - self._beat_at > self._patience.silent_s:
            return health.SILENT
        return "" if self._is_ready else "is not ready"

    def judge(self, elapsed_s: float, *, is_blamed: bool) -> None:
        """Kill it if it has been sick for too long; it is then started again.

        Args:
            elapsed_s: seconds since the last time.
            is_blamed: whether nothing else explains that it is not healthy.
        """
        if self.process is None or self.process.returncode is not None:
            return
        if self.healthy:
            self._was_healthy, self._sick_s = True, 0.0
            return
        if not is_blamed:
            return
        self._sick_s += elapsed_s
        limit_s = self._patience.start_s
        if self._was_healthy:
            limit_s = self._patience.failing_s if self._is_failing else self._patience.sick_s
        limit_s = min(limit_s * 2**self._sick_restarts, self._patience.longest_s)
        if self._sick_s > limit_s:
            log.warning("%s %s for %.0f s; killed", self.member.name, self.problem, self._sick_s)
            self._sick_restarts = min(self._sick_restarts + 1, 10)
            self._sick_s = 0.0
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def stop(self) -> None:
        """End the process, gently first."""
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.process.wait()
            return
        log.warning("%s did not stop; killed", self.member.name)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class Stack:
    """All members, and what is written down of them."""

    def __init__(self, folder: StateDir, nodes: int, servers: int, ports: dict[str, int]) -> None:
        members = make_members(folder, ports, nodes, servers)
        self.watched = {m.name: Watched(m, folder.logs) for m in members}
        self._folder = folder
        self._state = StackState(
            supervisor_pid=os.getpid(),
            nodes=nodes,
            servers=servers,
            ports=ports,
            settings=folder.settings(ports),
        )
        self._failure = ""
        self._looked_at = time.monotonic()

    @property
    def is_healthy(self) -> bool:
        """Whether every member is."""
        return all(w.healthy for w in self.watched.values())

    def disk_problem(self) -> str:
        """Why state cannot be written, if it cannot."""
        with contextlib.suppress(OSError):
            free = self._folder.free_bytes()
            if free < LEAST_FREE_BYTES:
                return (
                    f"the disk of {self._folder.root} is full ({free // 1024} KiB free); "
                    "free some space, then everything goes on"
                )
        return self._failure and f"cannot write to {self._folder.root}: {self._failure}"

    def write(self) -> None:
        """Write the state down, if the disk lets it."""
        state = self._state.model_copy(
            update={
                "members": [w.state for w in self.watched.values()],
                "problem": self.disk_problem(),
            }
        )
        try:
            self._folder.write(state)
            self._failure = ""
        except OSError as error:
            if not self._failure:
                log.warning("cannot write the state: %s", error)
            self._failure = error.strerror or str(error)

    async def look(self, client: httpx.AsyncClient) -> None:
        """Look at every member once, and judge."""
        await asyncio.gather(*(w.look(client) for w in self.watched.values()))
        now = time.monotonic()
        # A supervisor that was itself stopped has not watched all that time.
        elapsed_s = min(now - self._looked_at, SLOW_POLL_S + health.CHECK_TIMEOUT_S)
        self._looked_at = now
        is_full = bool(self.disk_problem())
        for w in self.watched.values():
            has_needs = all(self.watched[name].healthy for name in w.member.needs)
            is_blamed = not is_full and (has_needs or w.problem == health.SILENT)
            w.judge(elapsed_s, is_blamed=is_blamed)

    async def stop(self) -> None:
        """End all members: workers first, while what they need still runs."""
        members = list(self.watched.values())
        first = [w for w in members if w.member.name.startswith(("node-", "serve-"))]
        await asyncio.gather(*(w.stop() for w in first))
        for w in reversed(members):
            await w.stop()
        for w in members:
            w.process, w.problem = None, "is stopped"
        self.write()


async def supervise(folder: StateDir, nodes: int, servers: int, stop: asyncio.Event) -> None:
    """Run the stack until asked to stop."""
    known = folder.read()
    rules = load_settings().retention
    claimed = Ports()
    stack = Stack(folder, nodes, servers, claimed.choose(known.ports if known else {}, servers))
    stack.write()
    keepers = [asyncio.create_task(w.keep_running()) for w in stack.watched.values()]
    async with httpx.AsyncClient(
        timeout=health.CHECK_TIMEOUT_S, trust_env=False, headers={"Accept-Encoding": "identity"}
    ) as client:
        while not stop.is_set():
            await stack.look(client)
            stack.write()
            rotate_all(folder.logs, rules.log_bytes, rules.logs_kept)
            poll_s = SLOW_POLL_S if stack.is_healthy else FAST_POLL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(poll_s):
                    await stop.wait()
    for keeper in keepers:
        keeper.cancel()
    await stack.stop()
    claimed.close()


def take_lock(folder: StateDir) -> TextIO | None:
    """The folder's lock. Who only looks whether it is taken holds it for an instant."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while (lock := folder.lock()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return lock


async def main(stop: asyncio.Event) -> None:
    """Be the supervisor of the folder named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loomos.stack.supervisor",
        description="Supervise the stack of a folder. `loomos up` starts this.",
    )
    parser.add_argument("folder", type=Path, help="the stack's .loomos")
    parser.add_argument("nodes", type=int, help="worker nodes")
    parser.add_argument("servers", type=int, help="serving processes")
    arguments = parser.parse_args()
    folder = StateDir(arguments.folder)
    folder.prepare()
    lock = await asyncio.to_thread(take_lock, folder)
    if lock is None:
        log.error("another supervisor runs in %s", folder.root)
        return
    await supervise(folder, arguments.nodes, arguments.servers, stop)


if __name__ == "__main__":
    run_process(main)
