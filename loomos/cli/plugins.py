"""Commands that other packages add, as `plugins.enabled` of the settings says."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import typer

GROUP = "loomos.plugins"


def add_plugins(app: typer.Typer, enabled: Iterable[str]) -> None:
    """Add the commands of the packages named; one that is missing is a warning.

    Args:
        app: gets a group of commands per entry point, under its name.
        enabled: names of distributions, or of entry points.
    """
    offered = entry_points(group=GROUP)
    for name in enabled:
        found = [entry for entry in offered if _plain(name) in _names(entry)]
        if not found:
            print(f"warning: plugin {name!r} is not installed; pip install {name}", file=sys.stderr)
        for entry in found:
            try:
                added = entry.load()
            except Exception as error:
                print(f"warning: plugin {name!r} does not load: {error}", file=sys.stderr)
                continue
            if isinstance(added, typer.Typer):
                app.add_typer(added, name=entry.name)
            else:
                print(f"warning: plugin {name!r} offers no typer.Typer", file=sys.stderr)


def _names(entry: EntryPoint) -> set[str]:
    return {_plain(entry.name), _plain(entry.dist.name if entry.dist else "")}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
