"""Verifications: start, look, read the reports."""

from __future__ import annotations

import asyncio
import io
import zipfile
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response

from api.bodies import Route
from api.context import Parts, Reader, Submitter
from api.lists import members
from api.named_files import check_named_files
from api.problems import problem_responses
from loomos.client.delivery_models import VerificationList
from loomos.errors import NotFound
from loomos.jobs.names import verification_workflow_id
from loomos.jobs.verification import VerificationJob, VerificationStatus
from loomos.prism.reports.files import EVAL_FOLDER, EVIDENCE, HTML_REPORT, PDF_REPORT
from loomos.registry import Registry
from loomos.storage import Store
from loomos.storage.layout import verification_prefix

router = APIRouter(route_class=Route, prefix="/api/v1/verifications", tags=["verifications"])

VerificationId = Annotated[
    str, Path(min_length=1, max_length=200, pattern=r"^[a-z0-9][a-z0-9.-]*$")
]
ReportFormat = Literal["pdf", "html", "json", "zip"]
SHOWN = 50

_FILES = {"pdf": PDF_REPORT, "html": HTML_REPORT, "json": EVIDENCE}
_TYPES = {
    "pdf": "application/pdf",
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "zip": "application/zip",
}


@router.post("", status_code=201, responses=problem_responses(404))
async def start_verification(
    job: VerificationJob, parts: Parts, who: Submitter
) -> VerificationStatus:
    """Let Prism ask a version; suites are names, uploads, or files below `data.roots`."""
    await check_named_files(job, parts)
    for model in filter(None, (job.model, job.spec.baseline)):
        await asyncio.to_thread(Registry(parts.store).manifest, model)
    return await parts.delivery.start_verification(job, who.subject)


@router.get("", responses=problem_responses())
async def list_verifications(parts: Parts, who: Reader) -> VerificationList:
    """The newest verifications."""
    ids = await parts.delivery.verification_ids(SHOWN)
    return VerificationList(
        verifications=await members(parts.delivery.verification(item) for item in ids)
    )


@router.get("/{verification_id}", responses=problem_responses(404))
async def get_verification(
    verification_id: VerificationId, parts: Parts, who: Reader
) -> VerificationStatus:
    """A verification."""
    return await parts.delivery.verification(verification_workflow_id(verification_id))


@router.post("/{verification_id}/cancel", status_code=202, responses=problem_responses(404, 409))
async def cancel_verification(
    verification_id: VerificationId, parts: Parts, who: Submitter
) -> VerificationStatus:
    """Stop a verification; what was generated stays for the next."""
    full_id = verification_workflow_id(verification_id)
    await parts.delivery.cancel_verification(full_id, who.subject)
    return await parts.delivery.verification(full_id)


@router.delete("/{verification_id}", status_code=204, responses=problem_responses(404, 409))
async def delete_verification(
    verification_id: VerificationId, parts: Parts, who: Submitter
) -> None:
    """Forget a verification that has ended; evidence and verdicts stay."""
    await parts.delivery.delete_verification(verification_workflow_id(verification_id))


@router.get(
    "/{verification_id}/report",
    responses={
        **problem_responses(404),
        200: {"content": {kind.partition(";")[0]: {} for kind in _TYPES.values()}},
    },
    response_class=Response,
)
async def get_report(
    verification_id: VerificationId,
    parts: Parts,
    who: Reader,
    format: Annotated[ReportFormat, Query(description="zip: logs for `inspect view`.")] = "pdf",
) -> Response:
    """A report of a verification that is complete."""
    status = await parts.delivery.verification(verification_workflow_id(verification_id))
    if status.result is None:
        raise NotFound(f"verification {verification_id} is {status.state}; there is no report")
    prefix = verification_prefix(status.result.plan_sha256)
    if format == "zip":
        content = await asyncio.to_thread(_zip, parts.store, prefix + EVAL_FOLDER)
    else:
        content = await asyncio.to_thread(parts.store.get, prefix + _FILES[format])
    return Response(content, media_type=_TYPES[format])


def _zip(store: Store, prefix: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for item in store.objects(prefix):
            archive.writestr(item.key.removeprefix(prefix), store.get(item.key))
    return buffer.getvalue()
