"""Idempotency keys and the ids that come of them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from loomos.client import keys as module
from loomos.client.keys import Keys
from loomos.errors import Conflict
from loomos.jobs.names import is_identifier, new_identifier, short_digest
from loomos.storage import Store
from loomos.storage._local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path)


def test_texts_divided_differently_have_different_digests_of_128_bits() -> None:
    assert short_digest("a/b", "c") != short_digest("a", "b/c")
    assert short_digest("a", "b") != short_digest("a", "b", "")
    found = {short_digest("owner", str(n)) for n in range(50_000)}
    assert len(found) == 50_000 and all(is_identifier(text) for text in found)
    assert is_identifier(new_identifier()) and not is_identifier("A" * 26)


async def test_one_key_stands_for_one_document_whatever_its_name(store: Store) -> None:
    keys = Keys(store, "TrainingJob")
    first = await keys.take("team/alice", "c", "one", "d1")
    assert await keys.take("team/alice", "c", "one", "d1") == first
    with pytest.raises(Conflict, match="was used for another document"):
        await keys.take("team/alice", "c", "two", "d2")
    other = await keys.take("team", "alice/c", "one", "d1")
    kind = await Keys(store, "Experiment").take("team/alice", "c", "one", "d1")
    alone = await keys.take("team/alice", None, "one", "d1")
    assert len({first.run_id, other.run_id, kind.run_id, alone.run_id}) == 4
    assert first.run_id.startswith("one-") and len(first.run_id) == len("one-") + 26


async def test_a_key_let_go_stands_for_a_run_of_another_id_next(store: Store) -> None:
    keys = Keys(store, "TrainingJob")
    first = await keys.take("a", "k", "x", "d1")
    await keys.free(keys.name("a", "k"), "another run")
    assert (await keys.take("a", "k", "x", "d1")).run_id == first.run_id
    await keys.free(keys.name("a", "k"), first.run_id)
    await keys.free(keys.name("a", "nobody's"), "x")
    second = await keys.take("a", "k", "x", "d2")
    assert second.run_id != first.run_id and second.uses == 1


async def test_an_identifier_as_key_is_the_end_of_the_first_id_only(store: Store) -> None:
    keys, key = Keys(store, "Experiment"), new_identifier()
    first = await keys.take("a", key, "x", "d")
    assert first.run_id == f"x-{key}"
    await keys.free(keys.name("a", key), first.run_id)
    assert (await keys.take("a", key, "x", "d")).run_id != first.run_id


async def test_a_run_that_temporal_forgot_is_not_taken_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(store, "TrainingJob")
    first = await keys.take("a", "k", "x", "d")
    assert await keys.retake("a", "k", "x", first) == first
    monkeypatch.setattr(module, "STARTING", timedelta(0))
    assert (await keys.retake("a", "k", "x", first)).run_id != first.run_id
