"""`loomos data`: what you have uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import Output, ago, call, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.jobs.uploads import UploadList, UploadRecord

app = typer.Typer(help="Upload data, list and remove uploads.", no_args_is_help=True)


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(help="File or folder.")],
    include: Annotated[list[str] | None, typer.Option(help="Glob to take; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob to leave; repeatable.")] = None,
    output: Output = None,
) -> None:
    """Upload a file or a folder's data; prints the reference that documents may name."""

    async def work(client: LoomOSClient) -> UploadRecord:
        return await client.data.upload(path, include=include, exclude=exclude or ())

    made = call(work)
    show(made, output, lambda: print(made.reference))


@app.command("list")
def list_uploads(output: Output = None) -> None:
    """List your uploads, newest first; everybody's, for administrators."""

    async def work(client: LoomOSClient) -> UploadList:
        return await client.data.list()

    found = call(work)

    def table() -> None:
        from loomos.quantities import format_bytes

        print_table(
            ("NAME", "FILES", "SIZE", "USED", "OWNER", "REFERENCE"),
            [
                (
                    u.name,
                    u.files,
                    format_bytes(u.size_bytes),
                    ago(u.uploaded_at),
                    u.owner,
                    u.reference,
                )
                for u in found.uploads
            ],
        )

    show(found, output, table)


@app.command("rm")
def remove(
    references: Annotated[list[str], typer.Argument(help="upload:SHA256, as `list` shows.")],
) -> None:
    """Forget uploads; what jobs and models need of them stays until they are gone."""

    async def work(client: LoomOSClient) -> None:
        for reference in references:
            await client.data.delete(reference)

    call(work)
