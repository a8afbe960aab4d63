"""What an attempt's ranks say, sorted: progress for Temporal, records for the store."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loomos.jobs.training import CheckpointRef, Progress, TrainAssignment, TrainOutcome
from loomos.storage import Store
from loomos.storage.chunks import ChunkWriter
from loomos.storage.layout import events_prefix, logs_prefix, metrics_prefix

FLUSH_INTERVAL_S = 1.0
LONGEST_LOG_LINE = 8192
PROGRESS_KINDS = {"step", "evaluation", "committed", "resumed", "plan", "corrupt"}


class AttemptReports:
    """Reads the ranks' pipe and log files of one node until the attempt ends."""

    def __init__(self, job: TrainAssignment, store: Store, folder: Path) -> None:
        self.pipe = folder / "reports"
        self.progress = Progress(generation=job.generation)
        self.outcome: TrainOutcome | None = None
        self.failures: list[dict[str, Any]] = []
        self.changed_at = time.monotonic()
        self._folder = folder
        self._node = job.nodes[job.node_rank].node_id
        writer = f"n{job.node_rank:04d}"
        self._metrics = ChunkWriter(store, metrics_prefix(job.job_id), job.generation, writer)
        self._logs = ChunkWriter(store, logs_prefix(job.job_id), job.generation, writer)
        self._events = ChunkWriter(store, events_prefix(job.job_id), job.generation, writer)
        self._generation = job.generation
        self._log_positions: dict[Path, int] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._buffer = b""
        os.mkfifo(self.pipe, mode=0o600)
        # Held open for writing too, so that the pipe never ends between ranks.
        self._fd = os.open(self.pipe, os.O_RDWR | os.O_NONBLOCK)

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the kind of each report, after it has been taken in."""
        self._listeners.append(listener)

    async def follow(self) -> None:
        """Read reports as they come and flush chunks every second; runs until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, self._read_pipe)
        try:
            while True:
                await asyncio.sleep(FLUSH_INTERVAL_S)
                await asyncio.to_thread(self.flush)
        finally:
            loop.remove_reader(self._fd)

    def finish(self) -> None:
        """Take in what is left after the ranks have ended, write it, and close the pipe."""
        self._read_pipe()
        self.flush()
        os.close(self._fd)

    def flush(self) -> None:
        """Write what has been collected to the store."""
        self._collect_logs()
        for writer in (self._metrics, self._logs, self._events):
            writer.flush()

    def event(self, message: str, **facts: Any) -> None:
        """Note something that people will want to know about the attempt."""
        self._events.append({**self._stamp(), "message": message, **facts})

    def _read_pipe(self) -> None:
        try:
            while data := os.read(self._fd, 65536):
                *lines, self._buffer = (self._buffer + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        except BlockingIOError:
            return

    def _take(self, report: dict[str, Any]) -> None:
        self.changed_at = time.monotonic()
        kind = report.pop("kind")
        rank = report.pop("rank")
        if kind == "failed":
            self.failures.append({"rank": rank, **report})
            self.event(f"rank {rank} failed: {report['type']}: {report['message']}", kind=kind)
        elif kind == "finished":
            self.outcome = TrainOutcome.model_validate(report["outcome"])
        elif kind in PROGRESS_KINDS:
            getattr(self, f"_take_{kind}")(report)
        for listener in self._listeners:
            listener(kind)

    def _take_step(self, report: dict[str, Any]) -> None:
        self._metrics.append({**self._stamp(), "kind": "step", **report})
        self._update(step=report["step"], loss=report["loss"])
        for name in ("tokens_per_s", "environment_steps_per_s", "episode_return"):
            if report.get(name) is not None:
                self._update(**{name: report[name]})

    def _take_evaluation(self, report: dict[str, Any]) -> None:
        self._metrics.append({**self._stamp(), "kind": "evaluation", **report})
        self._update(validation_loss=report["validation_loss"])

    def _take_plan(self, report: dict[str, Any]) -> None:
        self._update(total_steps=report["total_steps"])

    def _take_resumed(self, report: dict[str, Any]) -> None:
        found = report["checkpoint"]
        ref = CheckpointRef.model_validate(found) if found else None
        self._update(resumed_from=ref, step=ref.step if ref else 0)
        self.event(f"resumed from step {ref.step}" if ref else "started from the beginning")

    def _take_committed(self, report: dict[str, Any]) -> None:
        step = report["checkpoint"]["step"]
        self._update(checkpoint_step=step)
        self.event(f"checkpoint of step {step} committed", kind="checkpoint", step=step)

    def _take_corrupt(self, report: dict[str, Any]) -> None:
        ref = CheckpointRef.model_validate(report["checkpoint"])
        self._update(skipped=[*self.progress.skipped, ref])
        self.event(
            f"checkpoint of step {ref.step} passed over: {report['problem']}", kind="corrupt"
        )

    def _update(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update=changes)

    def _stamp(self) -> dict[str, Any]:
        return {"at": round(time.time(), 3), "generation": self._generation, "node": self._node}

    def _collect_logs(self) -> None:
        """Move whole new lines of the ranks' output into the log chunk."""
        for path in sorted(self._folder.rglob("*.log")):
            start = self._log_positions.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                data = file.read()
            end = data.rfind(b"\n") + 1
            self._log_positions[path] = start + end
            for line in data[:end].decode("utf-8", errors="replace").splitlines():
                if line.strip():
                    self._logs.append(
                        {
                            **self._stamp(),
                            "source": _source(path, self._folder),
                            "line": line[:LONGEST_LOG_LINE],
                        }
                    )


def _source(path: Path, folder: Path) -> str:
    """`node`, or `rank 0 stdout`, from where torch elastic puts its logs."""
    if path.parent == folder:
        return path.stem
    return f"rank {path.parent.name} {path.stem}"
