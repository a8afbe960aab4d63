"""Following a job to its end, with a progress bar."""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from loomos.cli.job_records import speed
from loomos.cli.notifying import notify
from loomos.cli.output import Format, call_on, ends, is_quiet, show
from loomos.cli.tables import number, printable

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.models import JobDetail

WINDOW_S = 60.0
"""Time over which the pace is taken that says how long the rest will take."""


def wait_for(job_id: str, output: Format | None) -> None:
    """Follow a job with a progress bar on stderr; ends with code 1 unless it completes."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(stderr=True, markup=False, highlight=False, quiet=is_quiet())
    pace = Pace()

    async def work(client: LoomOSClient, job: str) -> JobDetail:
        columns = (
            TextColumn("{task.fields[state]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}", markup=False, table_column=Column(no_wrap=True)),
        )
        await client.get_job_status(job)  # if there is none, nothing is drawn
        with Progress(*columns, console=console, expand=True, disable=is_quiet()) as bar:
            task = bar.add_task(job, total=100, state="", facts="")
            async for kind, data in client.stream_job_events(job):
                if kind == "job":
                    bar.update(
                        task,
                        completed=data["progress"],
                        state=data["state"],
                        facts=progress_facts(data, pace),
                    )
                elif kind == "state":
                    at = datetime.fromisoformat(data["at"]).astimezone()
                    message = printable(data["message"])
                    console.print(f"{at:%H:%M:%S} {data['state']}: {message}", soft_wrap=True)
                elif kind == "event" and data.get("kind") in ("corrupt", "failed"):
                    console.print(printable(data["message"]), style="yellow", soft_wrap=True)
        return await client.get_job_status(job)

    goes_on = (
        f"job {job_id} goes on; `loomos jobs wait {job_id}` follows it, "
        f"`loomos jobs cancel {job_id}` ends it"
    )
    job = call_on("job", job_id, work, goes_on)
    notify(f"job {job.job_id}: {job.current_stage}")
    show(job, output, lambda: print(f"job {job.job_id}: {job.current_stage}"))
    ends(job.state == "completed")


class Pace:
    """How fast steps are taken, from when they were seen."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def left(self, step: int, total: int, now: float) -> timedelta | None:
        """How long the rest will take; None while that is unknown."""
        if self._seen and step < self._seen[-1][1]:  # resumed from a checkpoint
            self._seen.clear()
        self._seen.append((now, step))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        since, first = self._seen[0]
        if step == first or now <= since:
            return None
        return timedelta(seconds=round((total - step) * (now - since) / (step - first)))


def progress_facts(data: dict[str, Any], pace: Pace) -> str:
    """Step, reward or loss, speed and what is left, in one line."""
    training = data.get("training") or {}
    if not training.get("total_steps"):
        return ""
    step, total = training["step"], training["total_steps"]
    facts = [f"{step}/{total}"]
    if training.get("episode_return") is not None:
        facts.append(f"reward {number(training['episode_return'])}")
    elif training.get("loss") is not None:
        facts.append(f"loss {number(training['loss'])}")
    if rate := speed(training):
        facts.append(f"{rate}/s")
    left = pace.left(step, total, time.monotonic())
    if left is not None and data.get("state") == "running":
        facts.append(f"{left} left")
    return "  ".join(facts)
