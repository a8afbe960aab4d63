"""The synchronous client: in step with the async one, and at work beside a running loop."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import AsyncIterator

import pytest

from loomos.client import synchronous
from loomos.client.portal import Portal
from loomos.client.twin import write


def test_the_twin_is_in_step_with_the_async_client() -> None:
    def classes(text: str) -> dict[str, str]:
        found = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        return {node.name: ast.dump(node) for node in found}

    assert classes(inspect.getsource(synchronous)) == classes(write()), "run `make sdk`"


async def test_it_works_where_a_loop_runs_already() -> None:
    closed: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(3):
                await asyncio.sleep(0)
                yield number
        finally:
            closed.append(True)

    portal = Portal()
    assert list(portal.iterate(numbers())) == [0, 1, 2]
    for number in portal.iterate(numbers()):
        assert number == 0
        break
    assert closed == [True, True]

    async def fails() -> None:
        raise ValueError("so it is")

    with pytest.raises(ValueError, match="so it is"):
        portal.run(fails())
    portal.close()
    portal.close()
    with pytest.raises(RuntimeError, match="is closed"):
        portal.run(fails())
