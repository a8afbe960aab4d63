from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from activities.rank_host import RankHost
from loomos.client.http import LoomOSClient
from loomos.loomdb import LoomDB
from loomos.loomdb.notes import SignerKey
from tests.gangs import Lab, tiny_spec
from tests.postgres import Postgres, running_postgres
from tests.stack import Stack, running_stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the session's stack; all other tests run side by side (see the Makefile)."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker("stack")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[LoomOSClient]:
    async with stack.client() as connected:
        yield connected


@pytest.fixture(scope="session")
async def rank_host() -> AsyncIterator[RankHost]:
    host = RankHost()
    await host.start()
    yield host
    await host.close()


@pytest.fixture
def lab(tmp_path: Path, rank_host: RankHost) -> Callable[..., Lab]:
    """Makes a `Lab` for a tiny spec with changes."""
    return lambda **changes: Lab(tmp_path, rank_host, tiny_spec(**changes))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with (
        TemporaryDirectory(prefix="loomdb-pg-", dir="/tmp") as folder,
        running_postgres(Path(folder)) as server,
    ):
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def db_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database; each test runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'loom.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(f"t{uuid.uuid4().hex}")


@pytest.fixture
async def db(db_url: str) -> AsyncIterator[LoomDB]:
    """An open LoomDB that sequences and signs."""
    async with LoomDB(db_url, log_key=SignerKey.generate("test/log")) as opened:
        yield opened
