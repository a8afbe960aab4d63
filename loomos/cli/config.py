"""`loomos config`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from loomos.cli.output import Output, print_table, show

app = typer.Typer(help="Look at and change settings.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(help="Dotted name, such as cluster.endpoint.")]


@app.command()
def view(output: Output = None) -> None:
    """Show every setting with where it comes from."""
    from loomos.settings import explain

    rows = explain()
    plain = [{"name": n, "value": v, "source": s} for n, v, s in rows]
    show(plain, output, lambda: print_table(("SETTING", "VALUE", "FROM"), rows))


@app.command()
def get(key: Key) -> None:
    """Print one setting."""
    print(_known()[_check(key)])


@app.command("set")
def set_value(key: Key, value: Annotated[str, typer.Argument(help="Its new value.")]) -> None:
    """Write one setting to the config file."""
    if key == "token":
        key = "auth.token"
    _check(key)
    from loomos.manifest import read_scalar

    write({key: read_scalar(value)})


def write(values: dict[str, Any]) -> None:
    """Put settings into the config file; nothing is written if they do not fit.

    Raises:
        InvalidInput: a value does not fit its setting.
    """
    import os

    import yaml
    from pydantic import ValidationError

    from loomos.errors import InvalidInput
    from loomos.settings import Settings, config_file, read_config_file

    content = read_config_file()
    for key, value in values.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    try:
        Settings(**content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{path}: {first['msg']}; nothing was changed") from None
    target = config_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.touch(mode=0o600)
    partial.write_text(yaml.safe_dump(content, sort_keys=False))
    partial.replace(target)


def _known() -> dict[str, Any]:
    from loomos.settings import explain

    return {name: value for name, value, _ in explain()}


def _check(key: str) -> str:
    from loomos.errors import InvalidInput
    from loomos.settings import did_you_mean

    if key not in _known():
        raise InvalidInput(f"no setting {key!r}{did_you_mean(key)}")
    return key
