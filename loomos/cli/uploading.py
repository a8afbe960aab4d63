"""The bar that shows uploads, on stderr of a terminal; it appears with the first of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from loomos.client.http import LoomOSClient

SHOWN_FROM_BYTES = 1_000_000
"""Smaller uploads are over before a bar could be read."""


@contextmanager
def uploads_shown(client: LoomOSClient) -> Iterator[None]:
    """Show the uploads of a client within the block."""
    bar: Progress | None = None
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        nonlocal bar
        if total < SHOWN_FROM_BYTES or not sys.stderr.isatty():
            return
        if bar is None:
            bar = _bar()
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    client.data.progress = show
    try:
        yield
    finally:
        client.data.progress = None
        if bar is not None:
            bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
