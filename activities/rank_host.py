"""The warm torch process of a node, as seen from the worker. See `loomos.training.host`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from loomos.errors import AttemptFailed

log = logging.getLogger(__name__)

LONGEST_LINE = 1024 * 1024


class HostedProcess:
    """One forked attempt."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def terminate(self) -> None:
        """Ask it to stop; ranks checkpoint and end."""
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        """End it and its ranks at once."""
        self._signal(signal.SIGKILL, group=True)

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        if not self.exit_code.done():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)


class RankHost:
    """Starts the host when first needed, and again when it has died."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._starting = asyncio.Lock()
        self._replies: dict[str, asyncio.Future[HostedProcess]] = {}
        self._children: dict[str, HostedProcess] = {}
        self._count = 0
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start the host unless it runs, and wait until torch is loaded.

        Raises:
            AttemptFailed: it died while loading.
        """
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "loomos.training.host",
                    stdin=PIPE,
                    stdout=PIPE,
                    limit=LONGEST_LINE,
                )
                self._ready = asyncio.get_running_loop().create_future()
                self._reader = asyncio.create_task(self._read(self._process))
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def run(self, kind: str, request: Path, log_dir: Path) -> HostedProcess:
        """Fork a process for one attempt.

        Raises:
            AttemptFailed: the host died.
        """
        await self.start()
        self._count += 1
        name = f"p{self._count}"
        reply: asyncio.Future[HostedProcess] = asyncio.get_running_loop().create_future()
        self._replies[name] = reply
        line = json.dumps(
            {"id": name, "run": kind, "request": str(request), "log_dir": str(log_dir)}
        )
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return await reply

    async def close(self) -> None:
        """End the host and everything it runs."""
        if self._process is not None and self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(5):
                    await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
        if self._reader is not None:
            await self._reader

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None and self._ready is not None
        while line := await process.stdout.readline():
            message = json.loads(line)
            if "ready" in message:
                self._ready.set_result(None)
            elif "pid" in message:
                self._started(message["id"], HostedProcess(message["pid"]))
            else:
                self._children.pop(message["id"]).exit_code.set_result(message["exit"])
        await process.wait()
        log.warning("rank host ended with %s", process.returncode)
        died = AttemptFailed(f"the node's rank host died (exit {process.returncode})")
        if not self._ready.done():
            self._ready.set_exception(died)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(died)
        for child in self._children.values():
            child.exit_code.set_result(-signal.SIGKILL)
        self._replies.clear()
        self._children.clear()

    def _started(self, name: str, child: HostedProcess) -> None:
        """Hand a new process to who asked for it; if nobody waits any more, end it."""
        self._children[name] = child
        reply = self._replies.pop(name)
        if reply.done():
            child.kill()
        else:
            reply.set_result(child)
