"""Generations of a job: each newer one closes those before, whatever the store shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loomos.settings import StorageSettings
from loomos.storage import open_store
from loomos.training.fences import open_generation, read_fence


def test_a_generation_that_the_store_does_not_list_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a full disk: the object is there, and the folder that it is in is not listed."""
    store: Any = open_store(StorageSettings(url=f"file://{tmp_path}/store"))
    assert open_generation(store, "job", "first", from_scratch=False).generation == 1
    monkeypatch.setattr(type(store), "objects", lambda self, prefix: iter(()))
    plan = open_generation(store, "job", "second", from_scratch=False)
    assert (plan.generation, plan.accepted) == (2, [])
    assert read_fence(store, "job", 1).claim == "first"
    assert read_fence(store, "job", 2).claim == "second"
