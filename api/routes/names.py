"""What a name means: ids by name or by their beginning, of every kind."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from api.context import Gateway, Parts, Reader
from api.problems import problem_responses
from loomos.client.finder import WORKFLOW_KINDS
from loomos.client.names import MOST_NAMES, Kind, NameList, matching
from loomos.registry import Registry
from loomos.storage import Store

router = APIRouter(prefix="/api/v1/names", tags=["names"])

Text = Annotated[
    str,
    Query(
        min_length=1,
        max_length=200,
        pattern=r"^[a-z0-9][a-z0-9.@-]*$",
        description="A name, or the beginning of an id.",
    ),
]


@router.get("", responses=problem_responses())
async def find_names(kind: Kind, text: Text, parts: Parts, who: Reader) -> NameList:
    """Ids that a name, or the beginning of an id, may mean."""
    if kind in WORKFLOW_KINDS:
        return await parts.finder.find(kind, text)
    known = matching(await _known(kind, text, parts), text)
    return NameList(ids=known[:MOST_NAMES], is_complete=len(known) <= MOST_NAMES)


async def _known(kind: Kind, text: str, parts: Gateway) -> list[str]:
    if kind == "node":
        return sorted(node.info.node_id for node in (await parts.cluster.status()).nodes)
    if kind == "schedule":
        return await parts.schedules.names()
    return await asyncio.to_thread(_models, parts.store, text)


def _models(store: Store, text: str) -> list[str]:
    """Models, or versions of one where `text` is `NAME@...`."""
    registry = Registry(store)
    name, at, _ = text.partition("@")
    if not at:
        return sorted(registry.names())
    return [f"{name}@{version}" for version in registry.versions(name)]
