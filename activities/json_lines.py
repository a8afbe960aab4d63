"""A child process that is asked one thing at a time, in JSON lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

LONGEST_LINE = 64 * 1024 * 1024


class ChildDied(Exception):
    """The child ended with no answer; `code` is its exit code, negative for a signal."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"exit {code}")
        self.code = code


class JsonLinesProcess:
    """Runs `python -m MODULE`; started when first asked, and again when it has died.

    Args:
        module: what to run.
        without: prefixes of environment variables that it shall not have.
    """

    def __init__(self, module: str, without: tuple[str, ...] = ()) -> None:
        self._module, self._without = module, without
        self._process: Process | None = None
        self._is_dirty = False

    async def start(self) -> None:
        """Start it unless it runs and waits for a question."""
        await self.settle()
        if self._process is None or self._process.returncode is not None:
            environment = {k: v for k, v in os.environ.items() if not k.startswith(self._without)}
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=PIPE,
                stdout=PIPE,
                limit=LONGEST_LINE,
                env=environment if self._without else None,
            )
            self._is_dirty = False

    async def send(self, line: str) -> None:
        """Ask; the answer's lines are read with `receive`, and `done` is called after the last."""
        await self.start()
        self._is_dirty = True
        await self.reply(line)

    async def reply(self, line: str) -> None:
        """Say something more while it answers."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # `receive` says what became of it
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()

    async def receive(self) -> dict[str, Any]:
        """The next line of its answer.

        Raises:
            ChildDied: it ended before that.
        """
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ChildDied(await self._process.wait())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def done(self) -> None:
        """The answer was read to its end; it may be asked again."""
        self._is_dirty = False

    async def settle(self) -> None:
        """Kill it if it still works on an answer."""
        if self._is_dirty:
            await self.close()

    async def close(self) -> None:
        """Kill it."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._process = None
        self._is_dirty = False
