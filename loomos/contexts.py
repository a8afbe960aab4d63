"""Contexts: the gateways that a person's commands know by name, wherever they are run.

They stand in `contexts.yaml` beside the config file. A context is the folder of an embedded stack,
whose address and credentials are read there each time, or the address of a gateway with the file of
a token. `loomos up` registers its stack and makes it the current context.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loomos.errors import InvalidInput, NotFound

STACK_FILE = "stack.json"
STATE_DIR = ".loomos"
VARIABLE = "LOOMOS_CONTEXT"

_chosen: str | None = None


class Context(BaseModel):
    """One gateway."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state_dir: Path | None = None
    """Folder of an embedded stack."""
    endpoint: str | None = None
    """URL of another gateway."""
    token_file: Path | None = None
    """File that holds the token for it."""

    @model_validator(mode="after")
    def _is_one(self) -> Context:
        if (self.state_dir is None) == (self.endpoint is None):
            raise ValueError("give state_dir or endpoint")
        return self

    @property
    def where(self) -> str:
        """The folder or the URL."""
        return str(self.state_dir or self.endpoint)

    @property
    def is_gone(self) -> bool:
        """Whether there is no such stack any more."""
        return self.state_dir is not None and not (self.state_dir / STACK_FILE).exists()

    def settings(self) -> dict[str, Any]:
        """Settings that reach it."""
        if self.state_dir is not None:
            return read_stack(self.state_dir)
        auth = {"token": None, "token_file": self.token_file}
        return {"cluster": {"endpoint": self.endpoint}, "auth": auth}


class Contexts(BaseModel):
    """Content of `contexts.yaml`."""

    model_config = ConfigDict(extra="forbid")

    current: str | None = None
    """The one that is used where nothing else is said."""
    contexts: dict[str, Context] = Field(default_factory=dict)
    """All of them by name."""

    def find(self, name: str) -> Context:
        """The context of a name.

        Raises:
            NotFound: there is none.
        """
        if name in self.contexts:
            return self.contexts[name]
        known = ", ".join(sorted(self.contexts)) or "none; `loomos up` makes one"
        raise NotFound(f"no context {name!r}; known: {known}")


def config_file() -> Path:
    """Path of the person's config file."""
    return Path(os.environ.get("LOOMOS_CONFIG", "~/.loomos/config.yaml")).expanduser()


def contexts_file() -> Path:
    """Path of the file of contexts."""
    return config_file().with_name("contexts.yaml")


def read_contexts() -> Contexts:
    """All contexts; none if there is no file.

    Raises:
        InvalidInput: the file is not as it should be.
    """
    path = contexts_file()
    try:
        return Contexts.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        return Contexts()
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InvalidInput(f"{path}: {reason.splitlines()[0]}; mend or remove it") from None


@contextlib.contextmanager
def changing() -> Iterator[Contexts]:
    """The contexts, to be changed in the block; then they are written, all or nothing."""
    path = contexts_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_contexts()
        yield found
        partial = path.with_name(f".{path.name}.partial")
        partial.touch(mode=0o600)
        content = found.model_dump(mode="json", exclude_none=True)
        partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        partial.replace(path)


def register_stack(folder: Path) -> str:
    """Make the stack of a folder a context and the current one; gives its name.

    Contexts of stacks that are gone make room.
    """
    folder = folder.absolute()
    with changing() as known:
        known.contexts = {n: c for n, c in known.contexts.items() if not c.is_gone}
        name = next((n for n, c in known.contexts.items() if c.state_dir == folder), None)
        if name is None:
            name = _free_name(folder, known.contexts)
            known.contexts[name] = Context(state_dir=folder)
        known.current = name
    return name


def _free_name(folder: Path, taken: dict[str, Context]) -> str:
    named = folder.parent if folder.name == STATE_DIR else folder
    wanted = re.sub(r"[^a-z0-9]+", "-", named.name.lower()).strip("-") or "stack"
    number = 1
    name = wanted
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def choose(name: str | None) -> None:
    """Use this context in this process, as `--context` says."""
    global _chosen
    _chosen = name


def chosen_by_flag() -> Context | None:
    """The context of `--context`.

    Raises:
        NotFound: there is no such context, or its stack is gone.
    """
    return _named(_chosen)


def chosen_by_variable() -> Context | None:
    """The context of `LOOMOS_CONTEXT`.

    Raises:
        NotFound: there is no such context, or its stack is gone.
    """
    return _named(os.environ.get(VARIABLE))


def _named(name: str | None) -> Context | None:
    if not name:
        return None
    found = read_contexts().find(name)
    if found.is_gone:
        raise NotFound(
            f"context {name!r}: there is no stack in {found.where} any more; "
            f"`loomos context delete {name}`"
        )
    return found


def current() -> Context | None:
    """The current context, unless its stack is gone."""
    known = read_contexts()
    found = known.contexts.get(known.current or "")
    return None if found is None or found.is_gone else found


def find_state_dir() -> Path | None:
    """The nearest `.loomos/` with a stack in it, from here upwards; `LOOMOS_STATE_DIR` wins."""
    if named := os.environ.get("LOOMOS_STATE_DIR"):
        return Path(named)
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / STATE_DIR / STACK_FILE).exists():
            return folder / STATE_DIR
    return None


def meant_state_dir() -> Path | None:
    """Data of the stack that a command means: of a named context, the nearest, the current one.

    None if that is a gateway elsewhere, or there is none.
    """
    if (named := chosen_by_flag() or chosen_by_variable()) is not None:
        return named.state_dir
    nearest = find_state_dir()
    if nearest is None and (chosen := current()) is not None:
        return chosen.state_dir
    return nearest


def read_stack(folder: Path) -> dict[str, Any]:
    """The settings part of a stack's file; empty if there is no stack."""
    try:
        content = json.loads((folder / STACK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    settings = content.get("settings") if isinstance(content, dict) else None
    return settings if isinstance(settings, dict) else {}
