"""What takes how much of the store, and the freeing of what nobody needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict

from api.bodies import Route
from api.context import Admin, Parts, Reader
from api.problems import problem_responses
from loomos.jobs.retention import CollectionStatus, StorageUsage

router = APIRouter(route_class=Route, prefix="/api/v1", tags=["retention"])

CollectionId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[a-z0-9]+$")]


class Collecting(BaseModel):
    """How to collect garbage."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dry_run: bool = False
    """Only say what would be freed."""


@router.get("/storage", responses=problem_responses())
async def get_usage(parts: Parts, who: Reader) -> StorageUsage:
    """What takes how much of the store, by class, as it was a minute ago or later."""
    return await parts.usage.get()


@router.post("/gc", status_code=202, responses=problem_responses())
async def collect(parts: Parts, who: Admin, options: Collecting | None = None) -> CollectionStatus:
    """Free what the rules of retention let go, or say what that would be."""
    dry_run = options is not None and options.dry_run
    return await parts.retention.start(dry_run=dry_run, owner=who.subject)


@router.get("/gc/{collection_id}", responses=problem_responses(404))
async def get_collection(collection_id: CollectionId, parts: Parts, who: Admin) -> CollectionStatus:
    """A collection, with what it freed once it is over."""
    return await parts.retention.get(collection_id)
