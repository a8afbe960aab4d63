"""Command lines of the processes: help, settings as options, and nothing unknown.

Each option stands for a setting: `--node-id gpu-7` for `LOOMOS_NODE__ID=gpu-7`. Secrets have no
option, for command lines can be seen by everybody on the machine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence


def take_arguments(
    module: str,
    doc: str | None,
    sections: Sequence[str] = (),
    given: Sequence[str] | None = None,
    *,
    needs: Mapping[str, str] | None = None,
) -> list[str]:
    """Read the command line of `python -m MODULE` into the environment, where settings are read.

    Leaves with exit code 0 after `--help`, and 2 if an argument is unknown or lacking.

    Args:
        module: name of the module.
        doc: its docstring, the text of the help.
        sections: sections of the settings that become options.
        given: the arguments. Default: those of the process.
        needs: arguments that must be given, by name, with what they mean.

    Returns:
        The values of `needs`, in their order.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        epilog="Every setting can come from a variable, such as LOOMOS_TEMPORAL__ADDRESS, or from "
        "~/.loomos/config.yaml; `loomos config view` lists them all.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    needed = needs or {}
    for name, meaning in needed.items():
        parser.add_argument(name, help=meaning)
    if sections:
        _add_settings(parser, sections)
    found = vars(parser.parse_args(given))
    values = [found.pop(name) for name in needed]
    for variable, value in found.items():
        if value is not None:
            os.environ[variable] = value
    return values


def _add_settings(parser: argparse.ArgumentParser, sections: Sequence[str]) -> None:
    from pydantic import SecretStr

    from loomos.settings import Settings

    for section in sections:
        for name, field in Settings.model_fields[section].annotation.model_fields.items():  # type: ignore[union-attr]
            if "SecretStr" in str(field.annotation) or field.annotation is SecretStr:
                continue
            parser.add_argument(
                f"--{section}-{name}".replace("_", "-"),
                dest=f"LOOMOS_{section}__{name}".upper(),
                metavar=name.upper(),
                help=(field.description or "").replace("%", "%%"),
            )
