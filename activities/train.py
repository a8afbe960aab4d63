"""One node's part of an attempt, supervised.

The activity forks the node's ranks out of the warm host, relays their progress by heartbeat, and
answers for them: when it is cancelled they get SIGTERM, time for a last checkpoint, then SIGKILL.
It is never retried; the workflow makes a new gang.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temporalio import activity
from temporalio.service import RPCError, RPCStatusCode

from activities.attempt_reports import AttemptReports
from activities.failures import application_error
from activities.rank_host import HostedProcess, RankHost
from loomos.errors import NON_RETRYABLE_TRAINING_ERRORS, AttemptFailed, InvalidInput, Unavailable
from loomos.jobs.campaigns import Blended, BlendRequest
from loomos.jobs.training import ModelVersion, PublishRequest, TrainAssignment, TrainOutcome
from loomos.jobs.verification import ShardDone, ShardRequest
from loomos.settings import Settings
from loomos.storage import open_store

if TYPE_CHECKING:
    from loomos.training.requests import AnsweredRequest

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 1.0
SIGNAL_INTERVAL_S = 60.0
"""Progress reaches the workflow's history at most so often, so that history stays short."""
SIGNAL_AGAIN_S = 5.0
"""Time after which progress is told again that Temporal did not take."""
STALL_S = 900.0
"""Ranks that report nothing for so long hang."""
KILL_MARGIN_S = 5.0
"""Time beyond the ranks' own grace before the whole process group is killed."""


class TrainActivities:
    """Activities of a GPU worker that need torch, by way of the rank host."""

    def __init__(self, settings: Settings, host: RankHost, scratch: Path) -> None:
        self._settings, self._host, self._scratch = settings, host, scratch
        self._working = 0

    @activity.defn
    async def train(self, job: TrainAssignment) -> TrainOutcome:
        """Run this node's ranks to their end.

        Raises:
            ApplicationError: the first rank's error; non-retryable if a new gang would meet it too.
        """
        return await self.run_ranks(job, tells_job=True)

    async def run_ranks(self, job: TrainAssignment, *, tells_job: bool) -> TrainOutcome:
        """Run ranks, with heartbeats.

        Args:
            job: the work.
            tells_job: signal progress to the workflow that called the activity.

        Raises:
            ApplicationError: as `train` does.
        """
        # Imported here: the message lives beside torch-only modules but needs no torch itself.
        from loomos.training.requests import RankRequest

        store = open_store(self._settings.storage)
        with self._folder(f"g{job.generation}-") as folder:
            reports = AttemptReports(job, store, folder)
            request = RankRequest(
                assignment=job,
                storage=self._settings.storage,
                scratch=self._scratch,
                pipe=reports.pipe,
            )
            async with contextlib.AsyncExitStack() as beside:
                await beside.enter_async_context(self._freed(job))
                await beside.enter_async_context(_finished(reports))
                request.write(folder / "request.json")
                await beside.enter_async_context(_running(reports.follow()))
                await beside.enter_async_context(_running(_heartbeats(reports)))
                if tells_job:
                    signals = _ProgressSignals(job, reports)
                    await beside.enter_async_context(_running(signals.send()))
                process = await self._host.run("train", folder / "request.json", folder)
                grace_s = job.spec.runtime.stop_grace.total_seconds() + KILL_MARGIN_S
                code = await _supervise(process, grace_s, reports)
            return _outcome(reports, code)

    @activity.defn
    async def publish_model(self, request: PublishRequest) -> ModelVersion:
        """Turn a checkpoint into a model version; done twice it makes one version."""
        from loomos.training.requests import ExportRequest

        result = await self._hosted("export", ExportRequest, publish=request)
        return ModelVersion.model_validate(result["version"])

    @activity.defn
    async def evaluate_shard(self, request: ShardRequest) -> ShardDone:
        """Answer a shard of a verification; one whose answers are there costs one look."""
        from loomos.prism.answers import has_answers
        from loomos.training.requests import EvaluateRequest

        key_file = self._settings.serving.public_key_file
        if key_file is None:
            raise InvalidInput("a node that verifies models needs serving.public_key_file")
        store = open_store(self._settings.storage)
        key = request.shard.key
        if await asyncio.to_thread(has_answers, store, request.shard):
            return ShardDone(key=key, was_there=True)
        public_key = await asyncio.to_thread(key_file.read_text)
        await self._hosted("evaluate", EvaluateRequest, work=request, public_key=public_key)
        return ShardDone(key=key, was_there=False)

    @activity.defn
    async def blend_policies(self, request: BlendRequest) -> Blended:
        """Average policies and appraise what comes of it; done twice it makes one version."""
        from loomos.training.requests import AverageRequest

        result = await self._hosted("blend", AverageRequest, work=request)
        return Blended.model_validate(result["blended"])

    async def _hosted(
        self, kind: str, request_type: type[AnsweredRequest], **work: Any
    ) -> dict[str, Any]:
        """Have the rank host run a process; its result, or its error."""
        with self._folder(f"{kind}-") as folder:
            request = request_type(
                storage=self._settings.storage,
                scratch=self._scratch,
                result=folder / "result.json",
                **work,
            )
            request.write(folder / "request.json")
            async with _running(_heartbeats(None)):
                process = await self._host.run(kind, folder / "request.json", folder)
                code = await _supervise(process, 0, None)
            if activity.is_cancelled():  # its process is gone now; that it failed is no news
                raise asyncio.CancelledError
            if not request.result.exists():
                raise AttemptFailed(f"the {kind} process died (exit {code})")
            result: dict[str, Any] = json.loads(request.result.read_text())
            if "error" in result:
                error = result["error"]
                raise application_error(
                    error["type"], error["message"], retryable=error["retryable"]
                )
            return result

    @property
    def scratch(self) -> Path:
        """Folder for what work leaves on the way."""
        return self._scratch

    @property
    def is_idle(self) -> bool:
        """Whether nothing of this node is at work in the scratch folder."""
        return self._working == 0

    @contextlib.asynccontextmanager
    async def _freed(self, job: TrainAssignment) -> AsyncIterator[None]:
        """Free this node's disk when its ranks have ended, whether or not it has rank 0."""
        from loomos.training.scratch import forget_attempt

        try:
            yield
        finally:
            await asyncio.to_thread(forget_attempt, self._scratch, job.job_id, job.generation)

    @contextlib.contextmanager
    def _folder(self, prefix: str) -> Any:
        root = self._scratch / "attempts"
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        self._working += 1
        try:
            yield folder
        finally:
            self._working -= 1
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine that has no end beside the block; if it fails, so does the block."""
    owner = asyncio.current_task()
    assert owner is not None
    task = asyncio.ensure_future(work)
    failed = False

    def interrupt(done: asyncio.Task[None]) -> None:
        nonlocal failed
        if not done.cancelled() and done.exception() is not None:
            failed = True
            owner.cancel()

    task.add_done_callback(interrupt)
    try:
        yield
    except asyncio.CancelledError:
        if not failed:
            raise
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def _finished(reports: AttemptReports) -> AsyncIterator[None]:
    """Take in and write what ranks said last, however the block ends, and close their pipe."""
    try:
        yield
    except BaseException:
        try:
            await asyncio.to_thread(reports.finish)
        except Exception:  # what went wrong before is the news
            log.exception("the last reports of an attempt are lost")
        raise
    await asyncio.to_thread(reports.finish)


async def _heartbeats(reports: AttemptReports | None) -> None:
    while True:
        if reports is None:
            activity.heartbeat()
        else:
            activity.heartbeat(reports.progress)
        await asyncio.sleep(HEARTBEAT_INTERVAL_S)


async def _supervise(process: HostedProcess, grace_s: float, reports: AttemptReports | None) -> int:
    """Wait for the process; if cancelled, stop it with grace; kill it if it hangs."""
    try:
        while True:
            done, _ = await asyncio.wait([process.exit_code], timeout=5)
            if done:
                return process.exit_code.result()
            if reports is not None and time.monotonic() - reports.changed_at > STALL_S:
                reports.event(f"ranks have said nothing for {STALL_S:.0f} s; killed")
                process.kill()
    except asyncio.CancelledError:
        process.terminate()
        if grace_s:
            await _wait(process, grace_s)
    finally:
        process.kill()
    await _wait(process, 30)
    return process.exit_code.result() if process.exit_code.done() else -9


async def _wait(process: HostedProcess, timeout_s: float) -> None:
    """Wait for the end of a process, whatever cancellations come."""
    deadline = time.monotonic() + timeout_s
    while not process.exit_code.done() and (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([process.exit_code], timeout=left)


def _outcome(reports: AttemptReports, code: int) -> TrainOutcome:
    """What the workflow is told: the outcome, or the error that came first and matters most."""
    if reports.outcome is not None and not reports.failures:
        return reports.outcome
    fatal = [f for f in reports.failures if f["type"] in NON_RETRYABLE_TRAINING_ERRORS]
    # Where one rank misses the store, others miss that rank.
    away = [f for f in reports.failures if f["type"] == Unavailable.__name__]
    for failure in (*fatal, *away, *reports.failures):
        raise application_error(
            failure["type"],
            f"rank {failure['rank']}: {failure['type']}: {failure['message']}",
            retryable=not fatal,
            step=reports.progress.step,
        )
    raise application_error(
        AttemptFailed.__name__,
        f"ranks ended with exit code {code} and no word",
        retryable=True,
        step=reports.progress.step,
    )


class _ProgressSignals:
    """Tells the workflow of progress: the first step, damaged checkpoints, then once a minute."""

    def __init__(self, job: TrainAssignment, reports: AttemptReports) -> None:
        self._job, self._reports = job, reports
        self._due = asyncio.Event()
        self._sent_at = 0.0
        self._stepped = False
        if job.node_rank == 0:
            reports.listen(self._note)

    def _note(self, kind: str) -> None:
        first_step = kind == "step" and not self._stepped
        self._stepped = self._stepped or kind == "step"
        often_enough = time.monotonic() - self._sent_at < SIGNAL_INTERVAL_S
        if first_step or (kind == "committed" and not often_enough):
            self._due.set()

    async def send(self) -> None:
        handle = activity.client().get_workflow_handle(
            self._job.job_id, run_id=activity.info().workflow_run_id
        )
        while True:
            await self._due.wait()
            self._due.clear()
            self._sent_at = time.monotonic()
            try:
                await handle.signal("progress", self._reports.progress)
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    return  # the run is over, and soon the attempt is too
                # Temporal is away. Ranks go on; what there is to tell is told when it is back.
                log.warning("progress of %s cannot be told: %s", self._job.job_id, error)
                self._due.set()
                await asyncio.sleep(SIGNAL_AGAIN_S)
