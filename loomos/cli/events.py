"""`loomos events`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import Format, Output, call, chosen, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.ledger import EventPage, EventRecord

app = typer.Typer(help="Read what happened.", no_args_is_help=True)

Types = Annotated[
    list[str] | None, typer.Option("--type", "-t", help="Only this kind; may repeat.")
]
Stream = Annotated[str | None, typer.Option(help="Only about this, such as job:ID.")]


@app.command("list")
def list_events(
    type: Types = None,
    stream: Stream = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest.")] = 50,
    output: Output = None,
) -> None:
    """Print the newest events, oldest first."""

    async def work(client: LoomOSClient) -> EventPage:
        return await client.ledger.events(
            event_types=type or (), stream=stream, limit=limit, newest_first=True
        )

    events = call(work).events[::-1]
    plain = [event.model_dump(mode="json") for event in events]
    show(plain, output, lambda: print_table(COLUMNS, [_row(event) for event in events]))


@app.command()
def follow(type: Types = None, stream: Stream = None, output: Output = None) -> None:
    """Print events as they come, from now on, until interrupted."""
    as_json = chosen(output) != Format.TABLE

    async def work(client: LoomOSClient) -> None:
        size = (await client.ledger.status()).size
        async for event in client.ledger.follow(
            event_types=type or (), stream=stream, after=size - 1
        ):
            line = event.model_dump_json() if as_json else "  ".join(map(str, _row(event)))
            print(line)
            sys.stdout.flush()

    call(work)


COLUMNS = ("POSITION", "TIME", "TYPE", "STREAM", "BY", "DATA")


def _row(event: EventRecord) -> tuple[object, ...]:
    data = json.dumps(event.data, separators=(",", ":"))
    return (
        event.position,
        f"{event.time:%Y-%m-%d %H:%M:%S}",
        event.event_type,
        event.stream,
        event.by or ("erased" if event.is_erased else ""),
        data if len(data) <= 80 else data[:77] + "...",
    )
