"""JSON bodies as strictly as manifests are read: what is let in can be written out again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from loomos.errors import FieldError, InvalidManifest

MOST_DEPTH = 64
"""Lists and objects within each other."""


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
            JSON in UTF-8: numbers that are not finite, halves of surrogate pairs.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _wrong("$", f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _wrong("$", f"not JSON at {where}: {error.msg}") from None
    except RecursionError:
        raise _wrong("$", f"nested deeper than {MOST_DEPTH}") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise _wrong("$", f"not JSON: {error}") from None
    _check(value)
    return value


def _check(value: Any) -> None:
    """Look at everything in a value, without recursion."""
    open_values: list[tuple[str, Any, int]] = [("", value, 0)]
    while open_values:
        path, found, depth = open_values.pop()
        if depth > MOST_DEPTH:
            raise _wrong(path[:100], f"nested deeper than {MOST_DEPTH}")
        if isinstance(found, dict):
            for name, inner in found.items():
                _check_text(path, name)
                open_values.append((f"{path}.{name}" if path else name, inner, depth + 1))
        elif isinstance(found, list):
            for index, inner in enumerate(found):
                open_values.append((f"{path}.{index}" if path else str(index), inner, depth + 1))
        elif isinstance(found, str):
            _check_text(path, found)
        elif isinstance(found, float) and not math.isfinite(found):
            raise _wrong(path, "the number is larger than any that can be computed with")


def _check_text(path: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise _wrong(path, f"holds {half}, half of a surrogate pair, which is no text") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _wrong(path: str, message: str) -> InvalidManifest:
    return InvalidManifest([FieldError(path=path or "$", message=message)], "request")
