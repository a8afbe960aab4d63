"""JSON bodies as strictly as manifests are read: what is let in can be written out again."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from loomos.errors import FieldError, InvalidManifest
from loomos.limits import printable

MOST_DEPTH = 64
"""Lists and objects within each other."""
MOST_VALUES = 100_000
"""Values of one body, names included: Python holds an empty object in 64 bytes, which JSON says in
three, so that a body could take hundreds of times its size."""
LONGEST_PART = 64
"""Characters that an error says of each part of a path."""

_VALUES = re.compile(rb'(?:\A|[,:\[{])\s*+(?:"(?:[^"\\]|\\.)*+(?:"|\\?\Z))?', re.DOTALL)
"""What stands before a value or a name in JSON, and the whole of it if it is a text."""

_Path = Sequence[int | str]


class Route(APIRoute):
    """A route whose body, if it is JSON, is read by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's own."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            if "json" in request.headers.get("content-type", ""):
                body = await request.body()
                if body:
                    request._json = read_json(body)  # where `request.json()` keeps what it has read
            return await handler(request)

        return strict


def read_json(body: bytes) -> Any:
    """Read JSON.

    Raises:
        InvalidManifest: it is not JSON, is nested too deeply, or holds what cannot be written as
            JSON in UTF-8: numbers that are not finite, halves of surrogate pairs. Or it has more
            than `MOST_VALUES`.
    """
    if not _has_few_values(body):
        message = f"has more than {MOST_VALUES:,} values; send less at once, or upload it as a file"
        raise _wrong((), message)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _wrong((), f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _wrong((), f"not JSON at {where}: {error.msg}") from None
    except RecursionError:
        raise _wrong((), f"nested deeper than {MOST_DEPTH}") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise _wrong((), f"not JSON: {error}") from None
    _check(value)
    return value


def _has_few_values(body: bytes) -> bool:
    """Whether JSON holds at most `MOST_VALUES`; told from its text, before anything is made."""
    found = itertools.islice(_VALUES.finditer(body), MOST_VALUES + 1)
    return sum(1 for _ in found) <= MOST_VALUES


def _check(value: Any) -> None:
    """Look at everything in a value, without recursion."""
    path: list[int | str] = []
    levels: list[Iterator[tuple[int | str, Any]]] = [iter([("", value)])]
    while levels:
        step = next(levels[-1], None)
        if step is None:
            levels.pop()
            del path[-1:]
            continue
        key, found = step
        here = [*path, key][1:]  # without the root, which has no name
        _check_value(here, found)
        if isinstance(found, dict | list):
            path.append(key)
            levels.append(iter(found.items() if isinstance(found, dict) else enumerate(found)))


def _check_value(path: _Path, value: Any) -> None:
    if len(path) > MOST_DEPTH:
        raise _wrong(path[:8], f"nested deeper than {MOST_DEPTH}")
    if path and isinstance(path[-1], str):
        _check_text(path[:-1], path[-1])
    if isinstance(value, str):
        _check_text(path, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _wrong(path, "the number is larger than any that can be computed with")


def _check_text(path: _Path, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise _wrong(path, f"holds {half}, half of a surrogate pair, which is no text") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _wrong(path: _Path, message: str) -> InvalidManifest:
    where = ".".join(printable(str(part))[:LONGEST_PART] for part in path) or "$"
    return InvalidManifest([FieldError(path=where, message=message)], "request")
