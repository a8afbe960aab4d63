"""Which fields of a document may name a file, and what is named there.

A field says so in its type: `Annotated[str, LocalPath("data")]`. Everything that looks after paths,
the client that uploads and the gateway that refuses, finds them by `named_paths`, so a new field
needs the mark and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel

UPLOAD_SCHEME = "upload:"
"""`upload:SHA256` names files that were uploaded; the digest is that of their listing."""

UPLOAD = re.compile(r"^upload:[0-9a-f]{64}$")

PathKind = Literal["data", "file", "growing", "suite", "model"]

_NOT_LOCAL = ("s3://", "model:", "init:", "hub:", "bpe:", UPLOAD_SCHEME)
_PLAIN_NAME = re.compile(r"^[a-z][a-z0-9_.-]*$")


@dataclass(frozen=True)
class LocalPath:
    """Marks a field that may name a file or folder.

    `data` is a dataset, `file` one file, `suite` a suite's name or file, `model` a model or
    tokenizer folder or a name on the hub; `growing` is a file that is read again as it grows, so
    it is never uploaded.
    """

    kind: PathKind


@dataclass(frozen=True)
class TemplateOf:
    """Marks a mapping that becomes a model of this name once its parameters are filled in."""

    model: str


class NamedPath(NamedTuple):
    """A path that a document names."""

    field: tuple[str | int, ...]
    """Keys from the document's root to the value."""
    value: str
    """What is written there."""
    kind: PathKind
    """What it should be."""
    beside: Mapping[str, Any]
    """The mapping that holds the field, for globs that belong to it."""

    @property
    def where(self) -> str:
        """Dotted path of the field."""
        return ".".join(map(str, self.field))


def path_text(value: str, kind: PathKind) -> str | None:
    """The path that a value names, None if it names no file.

    `ORGANISATION/NAME` of a model may be a folder or a name on the hub; it is given back, and only
    a look at the disk tells.
    """
    if value.startswith(_NOT_LOCAL) or "{{" in value:
        return None
    if kind == "suite" and is_plain_name(value):
        return None
    if kind == "model" and value in ("base", "byte"):
        return None
    return value.removeprefix("file://")


def is_plain_name(suite: str) -> bool:
    """Whether a text is the name of a suite, and no file's."""
    return bool(_PLAIN_NAME.match(suite)) and not suite.endswith(".jsonl")


def is_explicit(path: str) -> bool:
    """Whether a text can only be a path: absolute, or relative with a dot first."""
    return path.startswith(("/", "./", "../", "~")) or path in (".", "..")


def named_paths(
    model: type[BaseModel], content: Mapping[str, Any], at: tuple[str | int, ...] = ()
) -> Iterator[NamedPath]:
    """Every value in `content`, a document as mappings and lists, that may name a file.

    Args:
        model: what the content is.
        content: the document as JSON has it.
        at: where it stands in a larger document.
    """
    for name, field in model.model_fields.items():
        if name in content:
            marks = (field.annotation, *field.metadata)
            yield from _values(marks, content[name], (*at, name), content)


def _values(
    types: tuple[Any, ...], value: Any, at: tuple[str | int, ...], beside: Mapping[str, Any]
) -> Iterator[NamedPath]:
    for kind in types:
        if isinstance(kind, LocalPath):
            for each, where in _strings(value, at):
                yield NamedPath(where, each, kind.kind, beside)
        elif isinstance(kind, TemplateOf) and isinstance(value, Mapping):
            yield from named_paths(_model_named(kind.model), value, at)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            if isinstance(value, Mapping):
                yield from named_paths(kind, value, at)
        elif get_origin(kind) is Annotated:
            yield from _values(get_args(kind), value, at, beside)
        elif isinstance(value, list) and get_origin(kind) is list:
            for number, item in enumerate(value):
                yield from _values(get_args(kind), item, (*at, number), beside)
        elif isinstance(value, Mapping) and get_origin(kind) is dict:
            for key, item in value.items():
                yield from _values(get_args(kind)[1:], item, (*at, key), beside)
        elif get_args(kind) and get_origin(kind) not in (list, dict, Literal):
            yield from _values(get_args(kind), value, at, beside)


def _strings(value: Any, at: tuple[str | int, ...]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    if isinstance(value, str):
        yield value, at
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strings(item, (*at, number))


def _model_named(name: str) -> type[BaseModel]:
    from loomos import manifest

    found: type[BaseModel] = getattr(manifest, name)
    return found
