"""RFC 8785 canonical JSON.

The standard library's C encoder gives the same bytes as RFC 8785 for ASCII text without floats and
without integers that a double cannot hold; anything that might be otherwise goes to `rfc8785`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import rfc8785

from loomos.errors import InvalidInput

_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode
_might_differ = re.compile(r"[0-9](?:\.|[eE][-+0-9])|[0-9]{16}").search
"""Floats and large integers, and now and then a harmless string that looks like one."""


def canonical_json(value: Any) -> str:
    """The one text that a JSON value has (RFC 8785).

    Args:
        value: what `json.dumps` takes; keys become strings, tuples lists.

    Raises:
        InvalidInput: it is not JSON: NaN, an integer beyond 2**53, bytes, another object.
    """
    try:
        text = _encode(value)
        if text.isascii() and not _might_differ(text):
            return text
        return rfc8785.dumps(json.loads(text)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}") from None
