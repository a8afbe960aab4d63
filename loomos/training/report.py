"""What ranks tell the process that supervises them: JSON lines through a named pipe.

A line is shorter than PIPE_BUF, so lines of several ranks never mix. Without a pipe (bare
`torchrun`) reports go nowhere.
"""

from __future__ import annotations

import json
import os
import select
from pathlib import Path
from typing import Any

from loomos.jobs.training import CheckpointRef

_ATOMIC_BYTES = select.PIPE_BUF


class Reporter:
    """Sends the events of one rank."""

    def __init__(self, pipe: Path | None, rank: int) -> None:
        self._fd = os.open(pipe, os.O_WRONLY | os.O_APPEND) if pipe else None
        self._rank = rank

    def step(self, **metrics: float | int | None) -> None:
        """Metrics of one optimizer step."""
        self._send("step", metrics)

    def evaluation(self, **metrics: float | int) -> None:
        """Metrics of one evaluation."""
        self._send("evaluation", metrics)

    def plan(self, total_steps: int) -> None:
        """How many steps the run will have."""
        self._send("plan", {"total_steps": total_steps})

    def resumed(self, ref: CheckpointRef | None) -> None:
        """Where the attempt starts."""
        self._send("resumed", {"checkpoint": ref.model_dump() if ref else None})

    def committed(self, ref: CheckpointRef) -> None:
        """A checkpoint exists."""
        self._send("committed", {"checkpoint": ref.model_dump()})

    def corrupt(self, ref: CheckpointRef, problem: str) -> None:
        """A checkpoint is passed over."""
        self._send("corrupt", {"checkpoint": ref.model_dump(), "problem": problem[:1000]})

    def failed(self, error: BaseException) -> None:
        """This rank cannot go on."""
        message = f"{error}"[:2000]
        self._send("failed", {"type": type(error).__name__, "message": message})

    def finished(self, outcome: dict[str, Any]) -> None:
        """The training ended well."""
        self._send("finished", {"outcome": outcome})

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        if self._fd is None:
            return
        line = json.dumps({"kind": kind, "rank": self._rank, **content}).encode() + b"\n"
        assert len(line) <= _ATOMIC_BYTES, f"a {kind} report of {len(line)} bytes would be torn"
        os.write(self._fd, line)
