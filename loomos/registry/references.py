"""How people name a model: `NAME`, `NAME@ALIAS`, `NAME@VERSION`."""

from __future__ import annotations

import re
from typing import NamedTuple

from loomos.errors import InvalidInput

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_SELECTOR = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ModelRef(NamedTuple):
    """A model, and perhaps which version of it."""

    name: str
    """Name of the model."""
    selector: str = ""
    """Alias or version; empty for the model as such."""

    def __str__(self) -> str:
        return f"{self.name}@{self.selector}" if self.selector else self.name


def parse_reference(text: str, field: str = "model") -> ModelRef:
    """Read a reference.

    Raises:
        InvalidInput: it is none.
    """
    name, separator, selector = text.partition("@")
    if not _NAME.fullmatch(name) or (separator and not _SELECTOR.fullmatch(selector)):
        raise InvalidInput(
            f"{field}: {text!r} names no model; write NAME, NAME@ALIAS or NAME@VERSION, lower case"
        )
    return ModelRef(name, selector)
