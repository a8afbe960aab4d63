"""Arguments that several groups of commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobId = Annotated[str, typer.Argument(help="Id of the job, or what only it begins with.")]
File = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The manifest: YAML or JSON.")]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", "--file", "-f", help="The same, as an option.")
]


def manifest_of(file: Path | None, manifest: Path | None) -> Path:
    """The manifest, given as an argument or as an option.

    Raises:
        InvalidInput: it is given twice, or not at all.
    """
    from loomos.errors import InvalidInput

    if (file is None) == (manifest is None):
        raise InvalidInput("give one manifest, as FILE or with --manifest FILE")
    found = file or manifest
    assert found is not None
    return found
