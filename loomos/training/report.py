"""What ranks tell the process that supervises them: JSON lines through a named pipe.

A report is one of the messages below, told apart by `kind`. A line is shorter than PIPE_BUF, so
lines of several ranks never mix; a report that would be longer, such as the outcome of a run with
many evaluations, goes by a file beside the pipe, which its line names. Without a pipe (bare
`torchrun`) reports go nowhere. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from loomos.jobs.message import Message
from loomos.jobs.training import CheckpointRef, TrainOutcome

LONGEST_TEXT_BYTES = 8000
"""What is kept of an error's message, as UTF-8."""

PULSE_S = 30.0
"""How often a rank says that it is still at the same long work."""


class RankReport(Message):
    """What every report has."""

    rank: int
    """Number of the rank that reports."""


class StepReport(RankReport):
    """One optimizer step was taken."""

    kind: Literal["step"] = "step"
    step: int
    """Steps taken so far."""
    metrics: dict[str, float | int | None]
    """The step's metrics, `loss` among them."""


class EvaluationReport(RankReport):
    """The validation loss was measured."""

    kind: Literal["evaluation"] = "evaluation"
    step: int
    """Steps taken so far."""
    validation_loss: float
    """The loss."""


class PlanReport(RankReport):
    """The length of the run is known."""

    kind: Literal["plan"] = "plan"
    total_steps: int
    """Steps that the run will have."""


class ResumedReport(RankReport):
    """The attempt starts here."""

    kind: Literal["resumed"] = "resumed"
    checkpoint: CheckpointRef | None
    """Checkpoint it starts from; None for the beginning."""


class CommittedReport(RankReport):
    """A checkpoint exists."""

    kind: Literal["committed"] = "committed"
    checkpoint: CheckpointRef
    """Which."""


class CorruptReport(RankReport):
    """A checkpoint is damaged and was passed over."""

    kind: Literal["corrupt"] = "corrupt"
    checkpoint: CheckpointRef
    """Which."""
    problem: str
    """What is wrong with it."""


class WorkingReport(RankReport):
    """The rank is at something that takes long; it has not stalled."""

    kind: Literal["working"] = "working"
    doing: str
    """What, in a few words."""
    for_s: float
    """Seconds since that began."""


class FailedReport(RankReport):
    """The rank cannot go on."""

    kind: Literal["failed"] = "failed"
    type: str
    """Name of the error's class."""
    message: str
    """Its message."""


class FinishedReport(RankReport):
    """The training ended well on this rank."""

    kind: Literal["finished"] = "finished"
    outcome: TrainOutcome
    """How."""


class FiledReport(RankReport):
    """A report too long for a line is in a file."""

    kind: Literal["filed"] = "filed"
    name: str
    """The file, beside the pipe."""


Report = Annotated[
    StepReport
    | EvaluationReport
    | PlanReport
    | ResumedReport
    | CommittedReport
    | CorruptReport
    | WorkingReport
    | FailedReport
    | FinishedReport
    | FiledReport,
    Field(discriminator="kind"),
]
"""Any report."""

_REPORT: TypeAdapter[Any] = TypeAdapter(Report)


def read_report(line: bytes, folder: Path) -> RankReport:
    """A report from a line of the pipe.

    Args:
        line: without its line end.
        folder: where the pipe is, and files beside it.

    Raises:
        ValueError: the line, or the file that it names, is no report.
    """
    report: RankReport = _REPORT.validate_python(json.loads(line))
    if isinstance(report, FiledReport):
        try:
            content = (folder / Path(report.name).name).read_bytes()
        except OSError as error:
            raise ValueError(f"the report's file {report.name!r} cannot be read") from error
        report = _REPORT.validate_python(json.loads(content))
    return report


class Reporter:
    """Sends the reports of one rank."""

    def __init__(self, pipe: Path | None, rank: int, pulse_s: float = PULSE_S) -> None:
        """Open the pipe.

        Args:
            pipe: the named pipe; None to report nothing.
            rank: number of this rank.
            pulse_s: seconds between reports of long work.
        """
        self._pipe, self._rank, self._pulse_s = pipe, rank, pulse_s
        self._fd = os.open(pipe, os.O_WRONLY | os.O_APPEND) if pipe else None
        self._filed = 0
        self._work: tuple[str, float, float] | None = None
        self._pulse: threading.Thread | None = None

    def step(self, *, step: int, **metrics: float | int | None) -> None:
        """Tell the metrics of one optimizer step."""
        self._send(StepReport(rank=self._rank, step=step, metrics=metrics))

    def evaluation(self, *, step: int, validation_loss: float) -> None:
        """Tell the result of one evaluation."""
        self._send(EvaluationReport(rank=self._rank, step=step, validation_loss=validation_loss))

    def plan(self, total_steps: int) -> None:
        """Tell how many steps the run will have."""
        self._send(PlanReport(rank=self._rank, total_steps=total_steps))

    def resumed(self, ref: CheckpointRef | None) -> None:
        """Tell where the attempt starts."""
        self._send(ResumedReport(rank=self._rank, checkpoint=ref))

    def committed(self, ref: CheckpointRef) -> None:
        """Tell that a checkpoint exists."""
        self._send(CommittedReport(rank=self._rank, checkpoint=ref))

    def corrupt(self, ref: CheckpointRef, problem: str) -> None:
        """Tell that a checkpoint is passed over."""
        self._send(CorruptReport(rank=self._rank, checkpoint=ref, problem=_cut(problem)))

    def failed(self, error: BaseException) -> None:
        """Tell that this rank cannot go on."""
        error = _own(error)
        message = _cut(str(error))
        self._send(FailedReport(rank=self._rank, type=type(error).__name__, message=message))

    def finished(self, outcome: TrainOutcome) -> None:
        """Tell that the training ended well."""
        self._send(FinishedReport(rank=self._rank, outcome=outcome))

    @contextlib.contextmanager
    def working(self, doing: str, at_most_s: float) -> Iterator[None]:
        """Tell every so often that this rank is at something, while the block runs.

        Args:
            doing: what, in a few words.
            at_most_s: seconds after which it is silent, so that work which hangs is noticed.
        """
        began = time.monotonic()
        before, self._work = self._work, (doing, began, began + at_most_s)
        if self._pulse is None and self._fd is not None:
            # One thread for all work: a step must not wait for the end of a thread of its own.
            self._pulse = threading.Thread(target=self._beat, name="pulse", daemon=True)
            self._pulse.start()
        try:
            yield
        finally:
            self._work = before

    def _beat(self) -> None:
        """Tell every so often what this rank is at, as long as it may take so long."""
        while True:
            time.sleep(self._pulse_s)
            work, now = self._work, time.monotonic()
            if work is None:
                continue
            doing, began, until = work
            if now - began >= self._pulse_s and now < until:
                for_s = round(now - began, 1)
                self._send(WorkingReport(rank=self._rank, doing=doing, for_s=for_s))

    def _send(self, report: RankReport) -> None:
        if self._fd is None:
            return
        line = _line(report)
        if len(line) > select.PIPE_BUF:
            assert self._pipe is not None
            self._filed += 1
            name = f"report-{self._rank}-{self._filed}.json"
            self._pipe.with_name(name).write_bytes(line)
            line = _line(FiledReport(rank=self._rank, name=name))
        os.write(self._fd, line)


def _line(report: RankReport) -> bytes:
    """As JSON, in bytes that can be decoded again whatever the texts hold."""
    text = json.dumps(report.model_dump(mode="python"), ensure_ascii=False)
    return text.encode(errors="replace") + b"\n"


def _cut(text: str) -> str:
    """The text's beginning: whole characters, not more bytes than are kept of a message."""
    kept = text.encode(errors="replace")[:LONGEST_TEXT_BYTES]
    return kept.decode(errors="ignore")


def _own(error: BaseException) -> BaseException:
    """What torch's `CheckpointException` wraps: the first rank's own error."""
    failures = getattr(error, "failures", None)
    if not isinstance(failures, dict) or not failures:
        return error
    wrapped = failures[min(failures)]
    cause = wrapped[0] if isinstance(wrapped, tuple) and wrapped else wrapped
    return cause if isinstance(cause, BaseException) else error
