"""Printing: tables for people, JSON and YAML for machines."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient

T = TypeVar("T")


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[
    Format | None, typer.Option("-o", "--output", help="Format; default from output.format.")
]


def call(work: Callable[[LoomOSClient], Awaitable[T]]) -> T:
    """Run one piece of work with a client of the gateway."""
    from loomos.cli.uploading import uploads_shown
    from loomos.client.http import LoomOSClient

    async def run() -> T:
        async with LoomOSClient() as client:
            with uploads_shown(client):
                return await work(client)

    return asyncio.run(run())


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


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under headings; without a terminal, unstyled and unwrapped."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(table)


@contextmanager
def counting(name: str, total: int, *, shows: bool) -> Iterator[Counter]:
    """A bar that counts; lines may be printed above it. Without `shows` there is nothing to see."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(highlight=False)
    columns = (
        TextColumn("{task.description}"),
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
                console.print(line)

        yield count


def print_facts(facts: Sequence[tuple[str, Any]]) -> None:
    """Print names and values, aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        if value not in (None, "", {}, []):
            grid.add_row(Text(name, style="dim"), Text(str(value)))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(grid)


def ago(moment: datetime | None) -> str:
    """A moment as people say it: `5m ago`."""
    if moment is None:
        return ""
    seconds = int((datetime.now(UTC) - moment.astimezone(UTC)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{max(seconds, 0)}s ago"
