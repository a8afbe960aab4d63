"""What ranks report arrives whole, whatever it is; and what an attempt leaves behind goes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities.attempt_reports import AttemptReports
from activities.failures import application_error
from activities.rank_host import HostedProcess
from activities.train import TrainActivities
from loomos.errors import AttemptFailed, InvalidData, Unavailable
from loomos.jobs.cluster import NodeInfo
from loomos.jobs.training import Progress, Reference, ResolvedInputs, TrainAssignment, TrainOutcome
from loomos.manifest import TrainingSpec
from loomos.settings import Settings, StorageSettings
from loomos.storage import open_store
from loomos.storage.chunks import read_chunks
from loomos.storage.layout import events_prefix, logs_prefix
from loomos.training.report import LONGEST_TEXT_BYTES, Reporter, read_report
from loomos.training.scratch import checkpoint_scratch
from tests.stack import tiny_job


def assignment() -> TrainAssignment:
    node = NodeInfo(
        node_id="n",
        incarnation="test",
        address="127.0.0.1",
        max_ranks=1,
        cpu_count=1,
        memory_bytes=2**30,
        storage_bytes=2**30,
    )
    nothing = Reference(uri="init:llama", sha256="0" * 64)
    return TrainAssignment(
        job_id="job-1",
        generation=4,
        lease_epoch=1,
        node_rank=0,
        nodes=[node],
        ranks_per_node=1,
        spec=TrainingSpec.model_validate(tiny_job("tiny")["spec"]),
        inputs=ResolvedInputs(model=nothing, training=nothing, code="test"),
    )


@pytest.fixture
def reports(tmp_path: Path) -> AttemptReports:
    store = open_store(StorageSettings(url=f"file://{tmp_path}/store"))
    folder = tmp_path / "attempt"
    folder.mkdir()
    return AttemptReports(assignment(), store, folder)


def test_an_outcome_of_any_length_arrives(reports: AttemptReports) -> None:
    outcome = TrainOutcome(
        status="completed",
        step=20_000,
        total_steps=20_000,
        evaluations=[(100 * n, 1 / (n + 3)) for n in range(200)],
    )
    Reporter(reports.pipe, 0).finished(outcome)
    reports.finish()
    assert reports.outcome == outcome


@pytest.mark.parametrize(
    "message",
    ["ß" * 3000, "数" * 9000, "\x00" * 3000, "bad \ud800 text", "line\nline", 'quo"te' * 900],
)
def test_an_error_of_any_text_arrives_with_its_type(reports: AttemptReports, message: str) -> None:
    Reporter(reports.pipe, 3).failed(InvalidData(message))
    reports.finish()
    (failure,) = reports.failures
    assert (failure["rank"], failure["type"]) == (3, "InvalidData")
    said = failure["message"]
    assert said == message.encode(errors="replace").decode()[: len(said)]
    assert len(said.encode()) > min(len(message), LONGEST_TEXT_BYTES) - 4
    error = application_error("InvalidData", message, retryable=False)
    assert error.message.encode()  # a lone surrogate could not be sent


def test_an_error_that_torch_wraps_is_told_as_itself(reports: AttemptReports) -> None:
    from torch.distributed.checkpoint.api import CheckpointException

    own = Unavailable("S3 cannot be reached")
    Reporter(reports.pipe, 0).failed(CheckpointException("write", {1: (own, None)}))  # type: ignore[dict-item]
    reports.finish()
    [failure] = reports.failures
    assert (failure["type"], failure["message"]) == ("Unavailable", "S3 cannot be reached")


def test_a_line_that_is_no_report_is_noted_and_passed_over(reports: AttemptReports) -> None:
    reporter = Reporter(reports.pipe, 0)
    assert reporter._fd is not None
    for line in (b"no JSON\n", b'{"kind": "odd", "rank": 0}\n', b'{"kind": "plan", "rank": 0}\n'):
        os.write(reporter._fd, line)
    reporter.plan(7)
    reports.finish()
    assert reports.progress.total_steps == 7
    store = reports._events._store
    records = [r for c in read_chunks(store, events_prefix("job-1")) for r in c.records]
    assert [record["kind"] for record in records] == ["odd_report"] * 3
    with pytest.raises(ValueError, match="cannot be read"):
        read_report(
            b'{"kind": "filed", "rank": 0, "name": "../../etc/passwd"}', reports.pipe.parent
        )


def test_a_rank_that_works_says_so_until_it_takes_too_long(reports: AttemptReports) -> None:
    reporter = Reporter(reports.pipe, 1, pulse_s=0.01)
    heard: list[float] = []
    reports.listen(lambda kind: heard.append(reports.changed_at) if kind == "working" else None)
    began = reports.changed_at
    with reporter.working("counts tokens", at_most_s=60):
        while len(heard) < 3:
            reports._read_pipe()
            time.sleep(0.001)
    assert reports.progress.doing == "counts tokens"
    assert began < heard[0] < heard[1] < heard[2]
    silent = Reporter(reports.pipe, 1, pulse_s=0.01)
    with silent.working("hangs", at_most_s=-1):
        time.sleep(0.05)
    reports.finish()
    assert reports.progress.doing == "counts tokens"


class DeadHost:
    """Writes a line of log, leaves shards on the disk, and dies."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    async def run(self, kind: str, request: Path, log_dir: Path) -> Any:
        (log_dir / "node.log").write_text("last words\n")
        shards = checkpoint_scratch(self._scratch, "job-1", 4) / "save-4-10"
        shards.mkdir(parents=True)
        (shards / "shard").write_bytes(b"x" * 100)
        raise AttemptFailed("the node's rank host died")


async def test_an_attempt_that_cannot_start_leaves_its_log_and_nothing_else(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    storage = StorageSettings(url=f"file://{tmp_path}/store")
    host: Any = DeadHost(scratch)
    train = TrainActivities(Settings(storage=storage), host, scratch)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises((AttemptFailed, ApplicationError), match="rank host died"):
            await ActivityEnvironment().run(_ranks, train)
    assert len(os.listdir("/proc/self/fd")) == before
    store = open_store(storage)
    logs = [r["line"] for c in read_chunks(store, logs_prefix("job-1")) for r in c.records]
    assert "last words" in logs
    assert [p.name for p in scratch.rglob("*") if p.name not in ("attempts", "checkpoints")] == []


async def _ranks(train: TrainActivities) -> TrainOutcome:
    async with asyncio.timeout(30):
        return await train.run_ranks(assignment(), tells_job=False)


class Away:
    """A Temporal that is away the first two times that it is told of progress."""

    def __init__(self) -> None:
        self.asked, self.heard = 0, asyncio.Event()
        self.step = 0

    def get_workflow_handle(self, workflow_id: str, *, run_id: str) -> Away:
        return self

    async def signal(self, name: str, progress: Progress) -> None:
        self.asked += 1
        if self.asked <= 2:
            raise RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
        self.step = progress.step
        self.heard.set()


class PatientHost:
    """Its rank takes a step, and ends once somebody was told of it."""

    def __init__(self, told: asyncio.Event) -> None:
        self._told = told

    async def run(self, kind: str, request: Path, log_dir: Path) -> Any:
        reporter = Reporter(log_dir / "reports", 0)
        process = HostedProcess(pid=2**22 + 1)
        reporter.step(step=7, loss=1.0)

        async def end() -> None:
            await self._told.wait()
            reporter.finished(TrainOutcome(status="completed", step=7, total_steps=7))
            process.exit_code.set_result(0)

        self._task = asyncio.create_task(end())
        return process


async def test_an_outage_of_temporal_ends_no_attempt_and_progress_is_told_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.train.SIGNAL_AGAIN_S", 0.01)
    away = Away()
    host: Any = PatientHost(away.heard)
    train = TrainActivities(
        Settings(storage=StorageSettings(url=f"file://{tmp_path}/store")), host, tmp_path
    )

    async def ranks() -> TrainOutcome:
        async with asyncio.timeout(30):
            return await train.run_ranks(assignment(), tells_job=True)

    client: Any = away
    outcome = await ActivityEnvironment(client).run(ranks)
    assert (outcome.step, away.step, away.asked) == (7, 7, 3)
