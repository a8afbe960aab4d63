from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from loomos.client.http import LoomOSClient
from tests.stack import Stack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[LoomOSClient]:
    async with stack.client() as connected:
        yield connected
