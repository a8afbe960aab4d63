"""`loomos gc` and `loomos stack du`: what takes how much, and the freeing of what nobody needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.output import Output, call, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.jobs.retention import CollectionReport, StorageUsage

app = typer.Typer(help="Look after the stack.", no_args_is_help=True)

DISK: dict[str, tuple[str, ...]] = {
    "Temporal's database": ("temporal.db*",),
    "LoomDB": ("loomdb.db*",),
    "S3 server": ("s3",),
    "logs": ("logs",),
    "scratch of nodes: inputs": ("scratch/*/inputs", "scratch/*/models"),
    "scratch of nodes: work": ("scratch/*/attempts", "scratch/*/checkpoints", "scratch/*/export-*"),
    "models in service": ("models",),
}


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    output: Output = None,
) -> None:
    """Free what nobody needs any more, by the rules of `retention` in the settings."""

    async def work(client: LoomOSClient) -> CollectionReport:
        return await client.retention.collect(dry_run=dry_run)

    report = call(work)

    def table() -> None:
        from loomos.quantities import format_bytes

        print_table(
            ("CLASS", "OBJECTS", "SIZE", "NOTE"),
            [(f.what, f.objects, format_bytes(f.size_bytes), f.note) for f in report.freed],
        )
        print(f"{'would free' if dry_run else 'freed'} {format_bytes(report.size_bytes)}")
        if report.unfinished:
            print("there is more; run it again")

    plain = {**report.model_dump(mode="json"), "size_bytes": report.size_bytes}
    show(plain, output, table)


@app.command()
def du(
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Folder of the stack's data; default .loomos.")
    ] = None,
    output: Output = None,
) -> None:
    """Show what takes how much: of this machine's disk, and of the store by class."""
    from loomos.contexts import meant_state_dir
    from loomos.errors import Unavailable

    async def work(client: LoomOSClient) -> StorageUsage:
        return await client.retention.usage()

    root = folder or meant_state_dir()
    disk = _disk(root) if root is not None else {}
    try:
        store: StorageUsage | None = call(work)
    except Unavailable as error:
        store = None
        typer.echo(str(error), err=True)
    content: dict[str, Any] = {
        "folder": None if root is None else str(root),
        "disk": disk,
        "store": None if store is None else store.model_dump(mode="json")["classes"],
    }

    def table() -> None:
        from loomos.quantities import format_bytes

        if root is not None:
            largest = sorted(disk.items(), key=lambda item: -item[1])
            rows = [(name, format_bytes(size)) for name, size in largest if size]
            print_table(("ON DISK", "SIZE"), [*rows, ("all", format_bytes(sum(disk.values())))])
        if store is not None:
            print_table(
                ("IN THE STORE", "OBJECTS", "SIZE"),
                [(c.what, c.objects, format_bytes(c.size_bytes)) for c in store.classes],
            )

    show(content, output, table)


def _disk(root: Path) -> dict[str, int]:
    """Bytes on disk by what they are for; what has no name of its own is `other`."""
    from loomos.retention.local import disk_bytes

    found = {
        name: sum(disk_bytes(path) for pattern in patterns for path in root.glob(pattern))
        for name, patterns in DISK.items()
    }
    found["other"] = max(0, disk_bytes(root) - sum(found.values()))
    return found
