"""`loomos context`: gateways by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loomos.cli.output import Output, print_table, show

app = typer.Typer(help="Gateways by name, from any folder.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of a context.")]


@app.command("list")
def list_contexts(output: Output = None) -> None:
    """List the contexts; the current one is used where no stack is nearer."""
    from loomos.contexts import read_contexts

    known = read_contexts()
    rows = [
        {
            "name": name,
            "current": name == known.current,
            "where": context.where,
            "state": _state(context.state_dir, context.is_gone),
        }
        for name, context in sorted(known.contexts.items())
    ]

    def table() -> None:
        print_table(
            ("", "CONTEXT", "STATE", "WHERE"),
            [("*" if r["current"] else "", r["name"], r["state"], r["where"]) for r in rows],
        )

    show(rows, output, table)


def _state(folder: Path | None, is_gone: bool) -> str:
    if folder is None:
        return "remote"
    if is_gone:
        return "gone"
    from loomos.stack.state import StateDir

    return "running" if StateDir(folder).is_supervised() else "stopped"


@app.command()
def use(name: Name) -> None:
    """Make a context the current one."""
    import sys

    from loomos.contexts import changing
    from loomos.settings import config_file, read_config_file

    with changing() as known:
        known.find(name)
        known.current = name
    print(f"using {name}")
    if "endpoint" in (read_config_file().get("cluster") or {}):
        print(
            f"warning: cluster.endpoint in {config_file()} comes first; remove it there, "
            f"or say --context {name}",
            file=sys.stderr,
        )


@app.command()
def delete(name: Name) -> None:
    """Forget a context; a stack and its data stay as they are."""
    from loomos.contexts import changing

    with changing() as known:
        known.find(name)
        del known.contexts[name]
        if known.current == name:
            known.current = None
    print(f"deleted {name}")


@app.command()
def add(
    name: Name,
    endpoint: Annotated[str, typer.Option(help="URL of the gateway.")],
    token_file: Annotated[Path | None, typer.Option(help="File that holds a token.")] = None,
) -> None:
    """Name a gateway elsewhere."""
    from loomos.contexts import Context, changing
    from loomos.errors import Conflict

    with changing() as known:
        if name in known.contexts:
            raise Conflict(f"context {name!r} is there already; delete it first")
        file = token_file.absolute() if token_file else None
        known.contexts[name] = Context(endpoint=endpoint, token_file=file)
    print(f"added {name}")
