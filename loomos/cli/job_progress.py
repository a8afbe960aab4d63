"""Following a job to its end, with a progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from loomos.cli.notifying import notify
from loomos.cli.output import Format, call, is_quiet, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.models import JobDetail


def wait_for(job_id: str, output: Format | None) -> None:
    """Follow a job with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, markup=False, highlight=False, quiet=is_quiet())

    async def work(client: LoomOSClient) -> JobDetail:
        columns = (
            TextColumn("{task.fields[state]:<10}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, disable=is_quiet()) as bar:
            task = bar.add_task(job_id, total=100, state="", facts="")
            async for kind, data in client.stream_job_events(job_id):
                if kind == "job":
                    bar.update(
                        task, completed=data["progress"], state=data["state"], facts=_facts(data)
                    )
                elif kind == "state":
                    console.print(f"{data['at'][11:19]} {data['state']}: {data['message']}")
                elif kind == "event" and data.get("kind") in ("corrupt", "failed"):
                    console.print(data["message"], style="yellow")
        return await client.get_job_status(job_id)

    job = call(work)
    notify(f"job {job.job_id}: {job.current_stage}")
    show(job, output, lambda: print(f"job {job.job_id}: {job.current_stage}"))
    if job.state != "completed":
        raise typer.Exit(1)


def _facts(data: dict[str, Any]) -> str:
    training = data.get("training") or {}
    if not training.get("total_steps"):
        return ""
    loss = f" loss {training['loss']:.3f}" if training.get("loss") is not None else ""
    return f"step {training['step']}/{training['total_steps']}{loss}"
