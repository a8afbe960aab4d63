"""Lists whose members are asked one by one: none of them spoils the list."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from loomos.errors import NotFound

T = TypeVar("T")


async def members(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What the calls give, in their order; a member that is gone meanwhile is left out.

    Whoever describes a member says what is known of one that does not answer; what is raised here
    is wrong with the whole list.
    """
    found = await asyncio.gather(*calls, return_exceptions=True)
    answers: list[T] = []
    for item in found:
        if isinstance(item, NotFound):
            continue
        if isinstance(item, BaseException):
            raise item
        answers.append(item)
    return answers
