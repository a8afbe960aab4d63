"""Blocks by name and version."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from loomos.blocks import BlockRegistry, BlockSpec
from loomos.errors import Conflict, InvalidInput, NotFound


def spec(version: str = "1.0.0", **changes: object) -> BlockSpec:
    return BlockSpec.model_validate(
        {"name": "counter", "version": version, "entry_point": "collections:Counter", **changes}
    )


async def test_the_newest_version_is_loaded_unless_one_is_named() -> None:
    registry = BlockRegistry()
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        await registry.register_block(spec(version))
    assert (await registry.load_block("counter")).spec.version == "1.10.0"
    block = await registry.load_block("counter", version="1.2.0")
    assert block.spec.version == "1.2.0"
    assert block.create_instance({"a": 2}) == Counter({"a": 2})
    assert [s.version for s in await registry.list_blocks()] == ["1.10.0", "1.9.0", "1.2.0"]


async def test_blocks_are_listed_by_category() -> None:
    registry = BlockRegistry()
    await registry.register_block(spec(category="language_models"))
    await registry.register_block(spec(name="other", category="vision"))
    assert [s.name for s in await registry.list_blocks("language_models")] == ["counter"]


async def test_a_version_stays_what_it_is() -> None:
    registry = BlockRegistry()
    await registry.register_block(spec())
    await registry.register_block(spec())
    with pytest.raises(Conflict, match="another version"):
        await registry.register_block(spec(description="changed"))


async def test_what_is_missing_is_named() -> None:
    registry = BlockRegistry()
    await registry.register_block(spec(requirements=["torch>=999", "nowhere-to-be-found"]))
    with pytest.raises(InvalidInput, match=r"torch>=999 \(.* is installed\), nowhere-to-be-found"):
        await registry.load_block("counter")
    with pytest.raises(NotFound, match=r"no block counter 2\.0; there are counter 1\.0\.0"):
        await registry.load_block("counter", version="2.0")
    await registry.register_block(spec("3.0", entry_point="collections:Nothing"))
    with pytest.raises(InvalidInput, match="collections:Nothing is not there"):
        await registry.load_block("counter")
    with pytest.raises(ValidationError, match=r"write a version such as 1\.0\.0"):
        spec("one")
