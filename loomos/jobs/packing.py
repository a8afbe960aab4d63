"""What a workflow hands to its next run, as one message that is never too large.

Temporal takes no payload over 2 MiB. Such a state is mostly names and repetition, so it is
compressed; of what is still too large, its owner offers ever shorter versions.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import TypeVar

from loomos.jobs.message import Message

MOST_BYTES = 900_000
"""Of a packed message."""
LEVEL = 3
"""Of compression: the workflow waits for it."""

MOST_PLAIN_BYTES = 1_500_000
"""Of an answer that is not packed."""

M = TypeVar("M", bound=Message)


def packed(versions: Iterable[Message]) -> str:
    """The first of the versions of a message that fits, compressed; the last if none does.

    Args:
        versions: the whole message first, then ever shorter ones, made as they are asked for.
    """
    text = ""
    for version in versions:
        content = version.model_dump_json(exclude_defaults=True).encode()
        text = base64.b85encode(zlib.compress(content, LEVEL)).decode()
        if len(text) <= MOST_BYTES:
            break
    return text


def fitting(versions: Iterable[M]) -> M:
    """The first of the versions of an answer that fits as it is; the last if none does."""
    found = None
    for found in versions:
        if len(found.model_dump_json().encode()) <= MOST_PLAIN_BYTES:
            break
    assert found is not None, "there is at least the whole"
    return found


def unpacked(kind: type[M], text: str) -> M:
    """The message that was packed."""
    return kind.model_validate_json(zlib.decompress(base64.b85decode(text)))
