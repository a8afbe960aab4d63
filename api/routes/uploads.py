"""Uploads: data that people bring along, to be named by their documents."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path

from api.bodies import Route
from api.context import Parts, Reader, Submitter
from api.problems import problem_responses
from loomos.jobs.uploads import UploadAnswer, UploadList, UploadRequest
from loomos.storage.uploads import forget_upload, list_uploads, make_upload

router = APIRouter(route_class=Route, prefix="/api/v1/uploads", tags=["data"])

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="Digest of the listing.")]


@router.post("", responses=problem_responses())
async def make(request: UploadRequest, parts: Parts, who: Submitter) -> UploadAnswer:
    """Make an upload of blobs that `PUT /api/v1/blobs/...` has taken, or say which are missing."""
    async with parts.uploading:
        return await asyncio.to_thread(
            make_upload,
            parts.store,
            request.sha256,
            request.name,
            who.subject,
            parts.most_uploaded,
        )


@router.get("", responses=problem_responses())
async def list_all(parts: Parts, who: Reader) -> UploadList:
    """Your uploads, newest first; everybody's, with the scope `admin`."""
    owner = None if who.allows("admin") else who.subject
    found = await asyncio.to_thread(list_uploads, parts.store, owner)
    return UploadList(uploads=found)


@router.delete("/{sha256}", status_code=204, responses=problem_responses(404))
async def forget(sha256: Digest, parts: Parts, who: Submitter) -> None:
    """Forget an upload; what runs and models need of it stays."""
    owner = None if who.allows("admin") else who.subject
    await asyncio.to_thread(forget_upload, parts.store, sha256, owner)
