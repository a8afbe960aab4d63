"""`loomos jobs logs` and `loomos jobs metrics`: what a job has written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.output import Format, Output, call, chosen, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient

JobId = Annotated[str, typer.Argument(help="Id of the job.")]


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    output: Output = None,
) -> None:
    """Print what the job's processes printed."""
    as_json = chosen(output) != Format.TABLE

    def line(record: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(record), flush=True)
        else:
            where = f"{record['generation']}/{record['node']}/{record['source']}"
            print(f"[{where}] {record['line']}", flush=True)

    async def work(client: LoomOSClient) -> None:
        if follow:
            async for record in client.stream_job_logs(job_id):
                line(record)
            return
        after = ""
        while True:
            page = await client.get_job_logs(job_id, after=after)
            for record in page.records:
                line(record)
            if not page.next_cursor:
                return
            after = page.next_cursor

    call(work)


def _rate(record: dict[str, Any]) -> str | None:
    """Tokens, or steps in environments, a second."""
    for name, unit in (("tokens_per_s", "tokens"), ("environment_steps_per_s", "steps")):
        if record.get(name) is not None:
            return f"{record[name]:.0f} {unit}"
    return None


def metrics(job_id: JobId, output: Output = None) -> None:
    """Print loss, learning rate and speed by step; a step taken twice shows once per attempt."""

    async def work(client: LoomOSClient) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = await client.get_job_metrics(job_id, after=after)
            found += page.records
            if not page.next_cursor:
                return found
            after = page.next_cursor

    records = call(work)

    def table() -> None:
        print_table(
            ("ATTEMPT", "STEP", "LOSS", "REWARD", "VALIDATION", "LEARNING RATE", "WORK/S"),
            [
                (
                    r["generation"],
                    r["step"],
                    f"{r['loss']:.4f}" if "loss" in r else None,
                    f"{r['episode_return']:.3f}" if r.get("episode_return") is not None else None,
                    f"{r['validation_loss']:.4f}" if "validation_loss" in r else None,
                    f"{r['learning_rate']:.2e}" if "learning_rate" in r else None,
                    _rate(r),
                )
                for r in records
            ],
        )

    show(records, output, table)
