"""How `loomos jobs pause|resume|cancel|restart|migrate|change` ask, and wait until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.output import Format, call_on, ends, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.models import JobDetail

Wait = Annotated[bool, typer.Option("--wait", help="Return when it has happened, not before.")]

INTERVAL_S = 0.5
"""Time between two looks at a job."""


def steer(
    method: str, job_id: str, output: Format | None, *, wait: bool = False, **options: Any
) -> None:
    """Ask something of a job and say so; exit code 1 if it did not come to that.

    Args:
        method: of the client.
        job_id: the job.
        output: how to print it.
        wait: return when it has happened.
        **options: of the method.
    """

    async def work(client: LoomOSClient, named: str) -> tuple[JobDetail, bool]:
        before = await client.get_job_status(named) if wait else None
        job: JobDetail = await getattr(client, method)(named, **options)
        if before is None:
            return job, True
        is_done = _is_done(method, before)
        while not (is_done(job) or job.state.is_final):
            await asyncio.sleep(INTERVAL_S)
            job = await client.get_job_status(named)
        return job, is_done(job)

    goes_on = f"it was asked for all the same; `loomos jobs wait {job_id}` follows the job"
    job, is_done = call_on("job", job_id, work, goes_on if wait else "")
    show(job, output, lambda: print(f"job {job.job_id}: {told(job)}"))
    ends(is_done)


def told(job: JobDetail) -> str:
    """Where a job is, after what was asked of it."""
    return f"{job.asked} asked for; now {job.current_stage}" if job.asked else job.current_stage


def _is_done(method: str, before: JobDetail) -> Callable[[JobDetail], bool]:
    """Whether what a method asks has happened to a job."""
    newest = before.attempts[-1].generation if before.attempts else 0

    def runs_anew(job: JobDetail) -> bool:
        is_new = bool(job.attempts) and job.attempts[-1].generation > newest
        return is_new and job.state in ("running", "publishing", "verifying", "rolling_out")

    def runs(job: JobDetail) -> bool:
        return not job.asked and job.state not in ("paused", "queued", "starting", "recovering")

    known: dict[str, Callable[[JobDetail], bool]] = {
        "cancel_job": lambda job: job.state == "cancelled",
        "pause_job": lambda job: job.state == "paused",
        "resume_job": runs,
        "restart_job": runs_anew,
        "migrate_job": runs_anew,
    }
    return known.get(method, lambda job: True)
