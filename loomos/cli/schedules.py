"""`loomos schedules`: continual learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.arguments import File, ManifestOption, manifest_of
from loomos.cli.output import Output, ago, call, call_on, print_facts, print_table, show

if TYPE_CHECKING:
    from loomos.client.delivery_models import ScheduleDetail, ScheduleList
    from loomos.client.http import LoomOSClient

app = typer.Typer(help="Update models in service on a schedule.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the schedule.")]


@app.command()
def create(
    file: File = None,
    manifest: ManifestOption = None,
    output: Output = None,
) -> None:
    """Start a schedule."""
    from loomos.jobs.continual import ContinualJob
    from loomos.manifest import read_document

    path = manifest_of(file, manifest)
    job = read_document(path, ContinualJob)

    async def work(client: LoomOSClient) -> ScheduleDetail:
        return await client.schedules.create(job, folder=path.absolute().parent)

    _print(call(work), output)


@app.command("list")
def list_schedules(output: Output = None) -> None:
    """List schedules."""

    async def work(client: LoomOSClient) -> ScheduleList:
        return await client.schedules.list()

    found = call(work)

    def table() -> None:
        print_table(
            ("SCHEDULE", "ENDPOINT", "CRON", "STATE", "NEXT", "LAST"),
            [
                (
                    s.name,
                    s.spec and s.spec.endpoint,
                    s.spec and f"{s.spec.cron} {s.spec.time_zone}",
                    _state(s),
                    s.next_at,
                    f"{s.updates[-1].decision}, {ago(s.updates[-1].at)}" if s.updates else None,
                )
                for s in found.schedules
            ],
        )

    show(found, output, table)


@app.command()
def describe(name: Name, output: Output = None) -> None:
    """Show a schedule and what came of its last periods."""
    _print(call_on("schedule", name, lambda client, one: client.schedules.get(one)), output)


@app.command()
def pause(name: Name, output: Output = None) -> None:
    """Start no more periods."""
    _steer(name, "pause", output)


@app.command()
def resume(name: Name, output: Output = None) -> None:
    """Start periods again."""
    _steer(name, "resume", output)


@app.command()
def trigger(name: Name, output: Output = None) -> None:
    """Start a period now, unless one is on."""
    _steer(name, "trigger", output)


@app.command()
def delete(name: Name) -> None:
    """Delete a schedule; what it made stays."""
    call(lambda client: client.schedules.delete(name))
    print(f"deleted {name}")


def _steer(name: str, verb: str, output: Output) -> None:
    async def work(client: LoomOSClient, one: str) -> ScheduleDetail:
        return await client.schedules.steer(one, verb)

    _print(call_on("schedule", name, work), output)


def _state(schedule: ScheduleDetail) -> str:
    return "paused" if schedule.is_paused else "running" if schedule.is_running else "waiting"


def _print(schedule: ScheduleDetail, output: Output) -> None:
    spec = schedule.spec

    def table() -> None:
        print_facts(
            [
                ("schedule", schedule.name),
                ("state", _state(schedule)),
                ("endpoint", spec and spec.endpoint),
                ("cron", spec and f"{spec.cron} {spec.time_zone}"),
                ("next", schedule.next_at),
            ]
        )
        if schedule.updates:
            print()
            print_table(
                ("WHEN", "DECISION", "SAMPLES", "VERSION", "WHY"),
                [(ago(u.at), u.decision, u.samples, u.version, u.reason) for u in schedule.updates],
            )

    show(schedule, output, table)
