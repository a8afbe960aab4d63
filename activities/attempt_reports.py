"""What an attempt's ranks say, sorted: progress for Temporal, records for the store."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loomos.jobs.training import Progress, TrainAssignment, TrainOutcome
from loomos.storage import Store
from loomos.storage.chunks import ChunkWriter
from loomos.storage.layout import events_prefix, logs_prefix, metrics_prefix
from loomos.training.report import (
    CommittedReport,
    CorruptReport,
    EvaluationReport,
    FailedReport,
    FinishedReport,
    PlanReport,
    RankReport,
    ResumedReport,
    StepReport,
    WorkingReport,
    read_report,
)

FLUSH_INTERVAL_S = 1.0
LONGEST_LOG_LINE = 8192


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
        self._first_rank = job.node_rank * job.ranks_per_node
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
        loop, fd = asyncio.get_running_loop(), self._fd
        loop.add_reader(fd, self._read_pipe)
        try:
            while True:
                await asyncio.sleep(FLUSH_INTERVAL_S)
                await asyncio.to_thread(self.flush)
        finally:
            loop.remove_reader(fd)  # `finish` may have closed the pipe meanwhile

    def finish(self) -> None:
        """Take in what is left after the ranks have ended, write it, and close the pipe.

        The pipe is closed whatever happens, and a second call changes nothing.
        """
        if self._fd < 0:
            return
        try:
            self._read_pipe()
            self.flush()
        finally:
            os.close(self._fd)
            self._fd = -1

    def flush(self) -> None:
        """Write what has been collected to the store."""
        self._collect_logs()
        for writer in (self._metrics, self._logs, self._events):
            writer.flush()

    def event(self, message: str, **facts: Any) -> None:
        """Note something that people will want to know about the attempt."""
        self._events.append({**self._stamp(), "message": message, **facts})

    def _read_pipe(self) -> None:
        if self._fd < 0:  # the loop may still call once after the end
            return
        try:
            while data := os.read(self._fd, 65536):
                *lines, self._buffer = (self._buffer + data).split(b"\n")
                for line in lines:
                    self._take_line(line)
        except BlockingIOError:
            return

    def _take_line(self, line: bytes) -> None:
        try:
            report = read_report(line, self._folder)
        except ValueError as error:
            self.event(f"a rank's report cannot be read: {str(error)[:500]}", kind="odd_report")
            return
        self._take(report)

    def _take(self, report: RankReport) -> None:
        self.changed_at = time.monotonic()
        match report:
            case FailedReport():
                self.failures.append(report.model_dump(include={"rank", "type", "message"}))
                said = f"{report.type}: {report.message}"
                self.event(f"rank {report.rank} failed: {said}", kind="failed")
            case FinishedReport():
                self.outcome = report.outcome
            case StepReport():
                self._take_step(report)
            case EvaluationReport():
                facts = report.model_dump(include={"step", "validation_loss"})
                self._metrics.append({**self._stamp(), "kind": "evaluation", **facts})
                self._update(validation_loss=report.validation_loss)
            case PlanReport():
                self._update(total_steps=report.total_steps)
            case ResumedReport():
                ref = report.checkpoint
                self._update(resumed_from=ref, step=ref.step if ref else 0)
                self.event(f"resumed from step {ref.step}" if ref else "started from the beginning")
            case CommittedReport():
                step = report.checkpoint.step
                self._update(checkpoint_step=step)
                self.event(f"checkpoint of step {step} committed", kind="checkpoint", step=step)
            case CorruptReport():
                ref = report.checkpoint
                self._update(skipped=[*self.progress.skipped, ref])
                said = f"checkpoint of step {ref.step} passed over: {report.problem}"
                self.event(said, kind="corrupt")
            case WorkingReport():
                self._take_working(report)
        for listener in self._listeners:
            listener(getattr(report, "kind", ""))

    def _take_step(self, report: StepReport) -> None:
        metrics = report.metrics
        self._metrics.append({**self._stamp(), "kind": "step", "step": report.step, **metrics})
        self._update(step=report.step, loss=metrics["loss"], doing="")
        for name in ("tokens_per_s", "environment_steps_per_s", "episode_return"):
            if metrics.get(name) is not None:
                self._update(**{name: metrics[name]})

    def _take_working(self, report: WorkingReport) -> None:
        if report.doing != self.progress.doing:
            self.event(f"rank {report.rank}: {report.doing}", kind="working")
        self._update(doing=report.doing)

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
                            "source": self._source(path),
                            "line": line[:LONGEST_LOG_LINE],
                        }
                    )

    def _source(self, path: Path) -> str:
        """`node`, or `rank 3 stdout`, from where torch elastic puts the logs of its local ranks."""
        local = path.parent.name
        if not local.isdecimal():
            return path.stem
        return f"rank {self._first_rank + int(local)} {path.stem}"
