"""Printing: tables for people, JSON and YAML for machines."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from loomos.cli.tables import print_facts, print_table

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.names import Kind

__all__ = [
    "Counter",
    "Format",
    "Output",
    "ago",
    "call",
    "call_on",
    "chosen",
    "counting",
    "ends",
    "print_facts",
    "print_table",
    "show",
]

T = TypeVar("T")

UNMET = 1
"""Exit code where what was asked for ended badly: a gate that failed, a run that did."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[
    Format | None, typer.Option("-o", "--output", help="Format; default from output.format.")
]


def call(work: Callable[[LoomOSClient], Awaitable[T]], goes_on: str = "") -> T:
    """Run one piece of work with a client of the gateway.

    Args:
        work: what to do.
        goes_on: what to tell a person who stops looking with Ctrl-C, at what does not stop by that.
    """
    from loomos.cli.uploading import uploads_shown
    from loomos.client.http import LoomOSClient

    async def run() -> T:
        async with LoomOSClient() as client:
            with uploads_shown(client):
                return await work(client)

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        if goes_on:
            print(f"\n{goes_on}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def call_on(
    kind: Kind,
    text: str,
    work: Callable[[LoomOSClient, str], Awaitable[T]],
    goes_on: str = "",
) -> T:
    """Run one piece of work on what `text` names: an id, or the unambiguous beginning of one.

    Only where there is no such id is it looked for, so a whole id costs no second request.
    """
    from loomos.errors import NotFound

    async def run(client: LoomOSClient) -> T:
        try:
            return await work(client, text)
        except NotFound:
            found = await client.find(kind, text)
            if found == text:
                raise
            return await work(client, found)

    return call(run, goes_on)


def forget(kind: Kind, text: str, delete: Callable[[LoomOSClient, str], Awaitable[None]]) -> None:
    """Delete what `text` names, and say so."""

    async def work(client: LoomOSClient, one: str) -> str:
        await delete(client, one)
        return one

    print(f"deleted {call_on(kind, text, work)}")


class Counter(Protocol):
    """What `counting` gives."""

    def __call__(self, done: int, line: str = "") -> None:
        """So many are done; print a line."""
        ...


def chosen(output: Format | None) -> Format:
    """The format asked for, or that of the settings."""
    if output is not None:
        return output
    from loomos.settings import load_settings

    return Format(load_settings().output.format)


def is_quiet() -> bool:
    """Whether the settings want neither progress nor notes."""
    from loomos.settings import load_settings

    return load_settings().output.verbosity in ("warn", "error")


def show(content: Any, output: Format | None, table: Callable[[], None]) -> None:
    """Print `content` for machines, or call `table` to print it for people."""
    form = chosen(output)
    if form == Format.TABLE:
        table()
        return
    plain = content.model_dump(mode="json") if hasattr(content, "model_dump") else content
    if form == Format.JSON:
        print(json.dumps(plain, indent=2))
        return
    import yaml

    print(yaml.safe_dump(plain, sort_keys=False), end="")


@contextmanager
def counting(name: str, total: int, *, shows: bool) -> Iterator[Counter]:
    """A bar that counts; lines may be printed above it. Without `shows` there is nothing to see."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    shows = shows and not is_quiet()
    with Progress(*columns, console=console, disable=not shows) as progress:
        task = progress.add_task(name, total=total)

        def count(done: int, line: str = "") -> None:
            progress.update(task, completed=done)
            if line and shows:
                console.print(line, soft_wrap=True)

        yield count


def ago(moment: datetime | None) -> str:
    """A moment as people say it: `5m ago`."""
    if moment is None:
        return ""
    seconds = int((datetime.now(UTC) - moment.astimezone(UTC)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{max(seconds, 0)}s ago"


def ends(is_good: bool, is_final: bool = True) -> None:
    """End with code 1 if what was looked at has ended, and badly."""
    if is_final and not is_good:
        raise typer.Exit(UNMET)
