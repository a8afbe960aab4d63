"""`loomos jobs logs` and `loomos jobs metrics`: what a job has written."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.arguments import JobId
from loomos.cli.output import Format, Output, call_on, chosen, print_table, show
from loomos.cli.tables import number, printable

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient

NEWEST = 20
"""Metrics that are shown unless others are asked for."""

Since = Annotated[
    str | None,
    typer.Option(help="Only later ones: 90s, 10m, 2h, or a moment such as 2026-01-31T12:00."),
]
Attempt = Annotated[int | None, typer.Option(min=0, help="Only of this attempt.")]


def logs(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option(min=1, max=50_000, help="Only so many lines, the newest.")
    ] = None,
    since: Since = None,
    attempt: Attempt = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Only of this rank.")] = None,
    output: Output = None,
) -> None:
    """Print what the job's processes printed, those of all ranks by time."""
    as_json = chosen(output) != Format.TABLE
    wanted: dict[str, Any] = {"since": moment(since), "attempt": attempt, "rank": rank}

    def line(record: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(record), flush=follow)
            return
        at = datetime.fromtimestamp(record["at"], UTC).astimezone()
        where = f"{record['generation']}/{record['node']}/{record['source']}"
        print(f"{at:%H:%M:%S} [{where}] {printable(record['line'])}", flush=follow)

    async def work(client: LoomOSClient, job: str) -> None:
        if follow:
            async for record in client.stream_job_logs(job, tail=tail, **wanted):
                line(record)
            return
        async for record in _pages(client.get_job_logs, job, tail, wanted):
            line(record)

    goes_on = f"job {job_id} goes on; `loomos jobs logs {job_id} --follow` shows its lines again"
    call_on("job", job_id, work, goes_on if follow else "")


def metrics(
    job_id: JobId,
    tail: Annotated[int, typer.Option(min=1, max=50_000, help="How many, the newest.")] = NEWEST,
    every_one: Annotated[bool, typer.Option("--all", help="All instead of the newest.")] = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="All steps that are a multiple of this.")
    ] = None,
    since: Since = None,
    attempt: Attempt = None,
    output: Output = None,
) -> None:
    """Print loss, learning rate and speed by step: the newest 20, unless told otherwise.

    A step that was taken twice shows once per attempt.
    """
    newest = None if every_one or every or since else tail
    wanted = {"every": every, "since": moment(since), "attempt": attempt}

    async def work(client: LoomOSClient, job: str) -> list[dict[str, Any]]:
        return [record async for record in _pages(client.get_job_metrics, job, newest, wanted)]

    records = call_on("job", job_id, work)

    def table() -> None:
        if not records:
            print("no metrics yet")
            return
        names = [name for name in COLUMNS if any(_cell(record, name) for record in records)]
        print_table(names, [[_cell(record, name) for name in names] for record in records])
        if newest is not None and len(records) == newest:
            print(f"the newest {newest}; --all shows all, --every N every N-th step")

    show(records, output, table)


async def _pages(read: Any, job_id: str, tail: int | None, wanted: dict[str, Any]) -> Any:
    """Records page by page; with `tail` there is one."""
    after = ""
    while True:
        page = await read(job_id, after=after, tail=tail, **wanted)
        for record in page.records:
            yield record
        if not page.next_cursor:
            return
        after = page.next_cursor


COLUMNS = ("ATTEMPT", "STEP", "LOSS", "REWARD", "VALIDATION", "LEARNING RATE", "WORK/S")
_FIELDS = {
    "ATTEMPT": "generation",
    "STEP": "step",
    "LOSS": "loss",
    "REWARD": "episode_return",
    "VALIDATION": "validation_loss",
    "LEARNING RATE": "learning_rate",
}


def _cell(record: dict[str, Any], column: str) -> str:
    if column == "WORK/S":
        return speed(record)
    value = record.get(_FIELDS[column])
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)


def speed(record: dict[str, Any]) -> str:
    """Tokens, or steps in environments, a second."""
    for name, unit in (("tokens_per_s", "tokens"), ("environment_steps_per_s", "steps")):
        if record.get(name) is not None:
            return f"{record[name]:.0f} {unit}"
    return ""


def moment(text: str | None) -> float | None:
    """A moment, given as how long ago it was or as a date, in seconds since 1970.

    Raises:
        InvalidInput: it is neither.
    """
    if text is None:
        return None
    from loomos.errors import InvalidInput
    from loomos.quantities import parse_duration

    try:
        if text[-1:].isalpha() and text[-1:].islower():
            return max(0.0, time.time() - parse_duration(text).total_seconds())
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"--since {text!r}: write how long ago, as 10m or 2h, or a moment, as 2026-01-31T12:00"
        ) from None
