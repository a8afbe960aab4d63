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
_DIGITS = bytes(ord("0") if chr(i).isdigit() and i < 128 else ord(" ") for i in range(256))
_LONG_NUMBER = b"0" * 16
_float = re.compile(r"[0-9](?:\.|[eE][-+0-9])").search
"""Finds every float and now and then a harmless string that looks like one."""


def canonical_json(value: Any) -> str:
    """The one text that a JSON value has (RFC 8785).

    Args:
        value: what `json.dumps` takes; keys become strings, tuples lists.

    Raises:
        InvalidInput: it is not JSON: NaN, an integer beyond 2**53, bytes, another object.
    """
    try:
        text = _encode(value)
        # Python writes no float without a point or a signed exponent; these tests are cheap.
        may_have_float = "." in text or "e+" in text or "e-" in text
        long_number = _LONG_NUMBER in text.encode().translate(_DIGITS)
        if text.isascii() and not long_number and not (may_have_float and _float(text)):
            return text
        return rfc8785.dumps(json.loads(text)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}") from None
