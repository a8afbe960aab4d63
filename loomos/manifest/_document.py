"""Reading documents: YAML 1.2 scalars, JSON, no duplicate keys, every error at once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from loomos.errors import FieldError, InvalidManifest
from loomos.limits import DEEPEST, plain_json, printable, shown
from loomos.manifest._document_model import BrokenRules
from loomos.manifest._spec import TrainingJob

MAX_DOCUMENT_BYTES = 1024 * 1024
LONGEST_PATH = 200
"""Characters of a field's path in an error."""
MOST_ERRORS = 100
"""Errors that one answer tells: nobody mends more at once, and documents may have one per value."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2's core schema: `5e-5` is a number, `no` is text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    seen: set[str] = set()
    for key in keys:
        if not isinstance(key, str):
            raise InvalidManifest(
                [FieldError(path=shown(key), message="keys are text; put it in quotes")]
            )
        if key in seen:
            line = node.start_mark.line + 1
            raise InvalidManifest(
                [FieldError(path=shown(key), message=f"given twice in the mapping at line {line}")]
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)  # type: ignore[return-value]


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_mapping(text: str, source: str = "manifest") -> dict[str, Any]:
    """Parse YAML or JSON text that holds one mapping.

    Raises:
        InvalidManifest: it does not parse, is too large, or is no mapping.
    """
    if len(text) > MAX_DOCUMENT_BYTES or len(printable(text).encode()) > MAX_DOCUMENT_BYTES:
        raise InvalidManifest([FieldError(path="$", message="larger than 1 MiB")], source)
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InvalidManifest(
            [FieldError(path="$", message=f"not YAML or JSON{where}: {problem}")], source
        ) from None
    except RecursionError:
        raise InvalidManifest(
            [
                FieldError(
                    path="$", message=f"is nested deeper than {DEEPEST} levels; make it flatter"
                )
            ],
            source,
        ) from None
    except ValueError as error:
        raise InvalidManifest(
            [FieldError(path="$", message=printable(f"not YAML or JSON: {error}"))], source
        ) from None
    if not isinstance(document, dict):
        raise InvalidManifest(
            [FieldError(path="$", message="a manifest is a mapping that starts with apiVersion")],
            source,
        )
    return plain(document, source)


def plain(document: Mapping[str, Any], source: str = "manifest") -> dict[str, Any]:
    """A copy of a document, of nothing but what JSON has and within the bounds of all documents.

    Raises:
        InvalidManifest: with the path of everything that is not.
    """
    try:
        found: dict[str, Any] = plain_json(dict(document))
    except ValidationError as error:
        raise InvalidManifest(field_errors(error.errors(), BaseModel, document), source) from None
    return found


def validate(document: dict[str, Any], source: str = "manifest") -> TrainingJob:
    """Check a document against the schema of a job.

    Raises:
        InvalidManifest: with every error found, each with its path and what would be right.
    """
    return validate_as(TrainingJob, document, source)


def validate_as(model: type[ModelT], document: dict[str, Any], source: str = "manifest") -> ModelT:
    """Check a document against a schema.

    Raises:
        InvalidManifest: with every error found, each with its path and what would be right.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise InvalidManifest(
            field_errors(error.errors(include_url=False), model, document), source
        ) from None


def read_document(path: Path, model: type[ModelT]) -> ModelT:
    """Read a YAML or JSON file as a document of one kind.

    Raises:
        InvalidManifest: it cannot be read, or does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InvalidManifest(
            [FieldError(path="$", message=f"cannot be read: {reason}")], str(path)
        ) from None
    return validate_as(model, read_mapping(text, str(path)), str(path))


def field_errors(
    items: Sequence[Any], model: type[BaseModel], document: Any = None
) -> list[FieldError]:
    """Turn pydantic's errors into ours: a dotted path, a message for people, a did-you-mean.

    Each rule that a document breaks is an error of its own. All else that is said of one path is
    what the members of a union say, and becomes one error. Beyond `MOST_ERRORS` the last says how
    many more there are.

    Args:
        items: as pydantic tells them.
        model: what the document should be.
        document: what it is, by which its keys are told from pydantic's names of union members.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for item in items[:MOST_ERRORS]:
        location = _location(item["loc"], document)
        path = ".".join(str(part)[:LONGEST_PATH] for part in location) or "$"
        messages = _messages(item, location, model)
        found.setdefault(path, {}).setdefault("; ".join(messages), messages)
    errors = [
        FieldError(path=shown(path, LONGEST_PATH), message=printable(message))
        for path, said in found.items()
        for message in (next(iter(said.values())) if len(said) == 1 else ["; or ".join(said)])
    ]
    left = max(0, len(items) - MOST_ERRORS) + max(0, len(errors) - MOST_ERRORS)
    if not left:
        return errors
    message = f"and {left:,} more errors, which are not told; mend these first"
    return [*errors[:MOST_ERRORS], FieldError(path="$", message=message)]


def _location(loc: Sequence[int | str], document: Any) -> list[int | str]:
    """Where an error is, without what pydantic calls the members of unions on the way."""
    found: list[int | str] = []
    here = document
    for part in loc:
        if _leads_on(here, part):
            here = here[part]
        elif _is_union_tag(part):
            continue
        else:
            here = None
        found.append(part)
    return found


def _leads_on(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, Mapping) and part in value


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (
        part.startswith(("function-", "constrained-", "list[", "dict[", "literal["))
        or part in ("int", "str", "float", "bool", "NodeRange")
    )


def _messages(item: Any, location: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    error = item.get("ctx", {}).get("error")
    return error.faults if isinstance(error, BrokenRules) else [_message(item, location, model)]


def _message(item: Any, location: Sequence[int | str], model: type[BaseModel]) -> str:
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1])[:100], known, n=1, cutoff=0.6)
        return "unknown key" + (
            f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
        )
    if kind == "missing":
        return "required; add it"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "not_json":
        return str(item["ctx"]["why"])
    if kind == "string_unicode":
        return "has half a character, which cannot be stored; write the whole one"
    if kind == "string_pattern_mismatch":
        return f"{shown(given)!r} does not match {item['ctx']['pattern']}"
    text = str(item["msg"])
    text = text[0].lower() + text[1:]
    if kind.startswith(("model_", "dict_")):
        return "should be a mapping"
    return f"{text}, not {_given(given)}"


def _given(value: Any) -> str:
    """What was written, in short."""
    if isinstance(value, int) and value.bit_length() > 128:
        return shown(value)
    try:
        return json.dumps(value, default=str)[:80]
    except (ValueError, RecursionError):  # a giant number inside, or no end to it
        return f"this {type(value).__name__}"


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the fields that the model at `path` has."""
    for part in path:
        field = model.model_fields.get(str(part))
        nested = None if field is None else model_in(field.annotation)
        if nested is None:
            break
        model = nested
    return list(model.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field of this annotation holds, perhaps in a list or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = model_in(argument)
        if found is not None:
            return found
    return None


def read_scalar(text: str) -> Any:
    """A value as a manifest would read it: `5e-5` is a number, `true` a truth, the rest text."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text
