"""Jobs: submit, list, look, steer, and read what they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.bodies import Route
from api.context import Admin, Gateway, Parts, Reader, Submitter
from api.named_files import check_named_files
from api.named_in_service import check_guardrails
from api.problems import problem_responses
from api.stream import RecentJobs, RecordSource, job_events, job_records, sse
from loomos.client.models import (
    Artifact,
    ArtifactList,
    JobChange,
    JobDetail,
    JobPage,
    Migration,
    Records,
    RestartOptions,
    Submitted,
)
from loomos.errors import InvalidInput, NotFound
from loomos.jobs.states import JobState
from loomos.jobs.training import JobUpdate
from loomos.manifest import TrainingJob
from loomos.storage.layout import events_prefix, logs_prefix, metrics_prefix
from loomos.storage.records import Position, Wanted, read_newest, read_records

router = APIRouter(route_class=Route, prefix="/api/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(min_length=1, max_length=128, pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=4096, description="`next_cursor` of a page.")]
RecordLimit = Annotated[int, Query(ge=1, le=50_000, description="Fewest records to collect.")]
After = Annotated[str, Query(max_length=16384, description="`next_cursor` of earlier records.")]
Tail = Annotated[int | None, Query(ge=1, le=50_000, description="Only so many, the newest.")]
Since = Annotated[
    float | None,
    Query(ge=0, le=1e11, allow_inf_nan=False, description="Seconds since 1970; only later ones."),
]
Attempt = Annotated[int | None, Query(ge=0, le=1_000_000, description="Of one attempt.")]
Follow = Annotated[bool, Query(description="Server-sent events until the job has ended.")]
LastEventId = Annotated[str | None, Header(max_length=16384)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=256)]
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}, "application/json": {}}}
}


@router.post("", status_code=201, responses=problem_responses(409))
async def submit_job(
    manifest: TrainingJob,
    parts: Parts,
    who: Submitter,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    priority: Annotated[
        int | None, Query(ge=1, le=5, description="Instead of the manifest's; 1 goes first.")
    ] = None,
) -> Submitted:
    """Submit a manifest. With an `Idempotency-Key`, sending it again gives the same job."""
    if priority is not None:
        spec = manifest.spec.model_copy(update={"priority": priority})
        manifest = manifest.model_copy(update={"spec": spec})
    check_guardrails(manifest.spec.rollout, "spec.rollout")
    await check_named_files(manifest, parts)
    submitted = await parts.workflows.submit(manifest, who.subject, idempotency_key)
    response.headers["Location"] = f"{router.prefix}/{submitted.job_id}"
    response.status_code = 201 if submitted.created else 200
    return submitted


@router.get("", responses=problem_responses())
async def list_jobs(
    parts: Parts,
    who: Reader,
    state: Annotated[list[JobState], Query()] = [],  # noqa: B006
    owner: Annotated[str | None, Query(max_length=256)] = None,
    project: Annotated[str | None, Query(max_length=63)] = None,
    label: Annotated[list[str], Query(description="`key=value`.")] = [],  # noqa: B006
    limit: Limit = 50,
    cursor: Cursor = None,
) -> JobPage:
    """Jobs, newest first, each once."""
    for item in label:
        if "=" not in item:
            raise InvalidInput(f"label: {item!r} is not key=value")
    labels = dict(item.split("=", 1) for item in label)
    return await parts.workflows.list_jobs(
        states=state, owner=owner, project=project, labels=labels, limit=limit, cursor=cursor
    )


@router.get("/{job_id}", responses=problem_responses(404))
async def get_job(job_id: JobId, parts: Parts, who: Reader) -> JobDetail:
    """Everything about a job."""
    return await parts.workflows.describe_job(job_id)


@router.put("/{job_id}", responses=problem_responses(404, 409))
async def change_job(job_id: JobId, change: JobChange, parts: Parts, who: Submitter) -> JobDetail:
    """Change labels or priority of a job that lives."""
    update = JobUpdate(priority=change.priority, labels=change.labels)
    await parts.workflows.change_job(job_id, update)
    return await parts.workflows.describe_job(job_id)


@router.delete("/{job_id}", status_code=204, responses=problem_responses(404, 409))
async def delete_job(job_id: JobId, parts: Parts, who: Submitter) -> None:
    """Forget a job that has ended, with its checkpoints, logs and metrics; its model stays."""
    await parts.workflows.delete_job(job_id)


@router.post("/{job_id}/cancel", status_code=202, responses=problem_responses(404, 409))
async def cancel_job(job_id: JobId, parts: Parts, who: Submitter) -> JobDetail:
    """Stop a job for good; its ranks get time for a last checkpoint."""
    await parts.workflows.cancel_job(job_id, who.subject)
    return await parts.workflows.describe_job(job_id)


@router.post("/{job_id}/pause", status_code=202, responses=problem_responses(404, 409))
async def pause_job(job_id: JobId, parts: Parts, who: Submitter) -> JobDetail:
    """Checkpoint a job and give its nodes back."""
    await parts.workflows.pause_job(job_id)
    return await parts.workflows.describe_job(job_id)


@router.post("/{job_id}/resume", status_code=202, responses=problem_responses(404, 409))
async def resume_job(job_id: JobId, parts: Parts, who: Submitter) -> JobDetail:
    """Let a paused job go on."""
    await parts.workflows.resume_job(job_id)
    return await parts.workflows.describe_job(job_id)


@router.post("/{job_id}/restart", status_code=202, responses=problem_responses(404, 409))
async def restart_job(
    job_id: JobId, parts: Parts, who: Submitter, options: RestartOptions | None = None
) -> JobDetail:
    """Start a new attempt of a job that runs, or run one again that has ended."""
    await parts.workflows.restart_job(
        job_id, from_scratch=options is not None and options.from_scratch
    )
    return await parts.workflows.describe_job(job_id)


@router.post("/{job_id}/migrate", status_code=202, responses=problem_responses(404, 409))
async def migrate_job(job_id: JobId, migration: Migration, parts: Parts, who: Admin) -> JobDetail:
    """Move a job to other nodes while it runs."""
    await parts.workflows.migrate_job(job_id, migration.nodes)
    return await parts.workflows.describe_job(job_id)


@router.get(
    "/{job_id}/events", responses={**problem_responses(404), **STREAM}, response_class=Response
)
async def stream_job_events(
    job_id: JobId,
    request: Request,
    parts: Parts,
    who: Reader,
    last_event_id: LastEventId = None,
) -> StreamingResponse:
    """States, attempt events and progress as server-sent events, until the job has ended."""
    recent: RecentJobs = request.app.state.recent
    await recent.get(job_id)
    return sse(job_events(recent, parts.store, events_prefix(job_id), job_id, last_event_id))


@router.get(
    "/{job_id}/metrics", responses={**problem_responses(404), **STREAM}, response_model=Records
)
async def get_job_metrics(
    job_id: JobId,
    request: Request,
    parts: Parts,
    who: Reader,
    limit: RecordLimit = 10_000,
    after: After = "",
    follow: Follow = False,
    tail: Tail = None,
    since: Since = None,
    attempt: Attempt = None,
    every: Annotated[
        int, Query(ge=1, le=1_000_000, description="Only steps that are a multiple of this.")
    ] = 1,
    last_event_id: LastEventId = None,
) -> Records | StreamingResponse:
    """Metrics, oldest attempt first; steps taken twice appear once per attempt (`generation`)."""
    wanted = Wanted(generation=attempt, since=since, every=every)
    reading = Reading(metrics_prefix(job_id), "metrics", wanted, limit, tail)
    return await _records(job_id, request, parts, reading, after or last_event_id or "", follow)


@router.get(
    "/{job_id}/logs", responses={**problem_responses(404), **STREAM}, response_model=Records
)
async def get_job_logs(
    job_id: JobId,
    request: Request,
    parts: Parts,
    who: Reader,
    limit: RecordLimit = 10_000,
    after: After = "",
    follow: Follow = False,
    tail: Tail = None,
    since: Since = None,
    attempt: Attempt = None,
    rank: Annotated[int | None, Query(ge=0, le=1_000_000, description="Of one rank.")] = None,
    last_event_id: LastEventId = None,
) -> Records | StreamingResponse:
    """Lines that the job's processes printed; those of one attempt by time."""
    wanted = Wanted(generation=attempt, since=since, rank=rank)
    reading = Reading(logs_prefix(job_id), "log", wanted, limit, tail)
    return await _records(job_id, request, parts, reading, after or last_event_id or "", follow)


class Reading(NamedTuple):
    """What is to be read of a job's records."""

    prefix: str
    """Where they are."""
    kind: str
    """As events of a stream are called."""
    wanted: Wanted
    """Which."""
    limit: int
    """How many at a time."""
    tail: int | None
    """How many of the newest, instead of all."""


async def _records(
    job_id: str, request: Request, parts: Gateway, reading: Reading, after: str, follow: bool
) -> Records | StreamingResponse:
    recent: RecentJobs = request.app.state.recent
    await recent.get(job_id)
    store, position = parts.store, Position.parse(after)
    if follow:
        tail = None if after else reading.tail
        source = RecordSource(store, reading.prefix, reading.kind, reading.wanted)
        return sse(job_records(recent, source, job_id, position, tail))
    if reading.tail is not None:
        found, end = await asyncio.to_thread(
            read_newest, store, reading.prefix, reading.wanted, reading.tail
        )
    else:
        found, end = await asyncio.to_thread(
            read_records, store, reading.prefix, position, reading.wanted, reading.limit
        )
    moved = reading.tail is None and end != position
    return Records(records=found, next_cursor=str(end) if moved else None)


@router.get("/{job_id}/artifacts", responses=problem_responses(404))
async def list_artifacts(job_id: JobId, parts: Parts, who: Reader) -> ArtifactList:
    """Files of the model that the job published."""
    files = await asyncio.to_thread(_model_files, parts, await _model_prefix(job_id, parts))
    return ArtifactList(
        artifacts=[
            Artifact(path=name, size_bytes=facts["size_bytes"], sha256=facts["sha256"])
            for name, facts in sorted(files.items())
        ]
    )


@router.get(
    "/{job_id}/artifacts/{path:path}", responses=problem_responses(404), response_class=Response
)
async def get_artifact(job_id: JobId, path: str, parts: Parts, who: Reader) -> StreamingResponse:
    """One file of the model that the job published."""
    prefix = await _model_prefix(job_id, parts)
    files = await asyncio.to_thread(_model_files, parts, prefix)
    if path not in files:
        raise NotFound(f"job {job_id} has no artifact {path!r}; known: {', '.join(sorted(files))}")
    pieces: Iterator[bytes] = await asyncio.to_thread(parts.store.stream, prefix + path)
    return StreamingResponse(
        pieces,
        media_type="application/octet-stream",
        headers={"Content-Length": str(files[path]["size_bytes"])},
    )


async def _model_prefix(job_id: str, parts: Gateway) -> str:
    job = await parts.workflows.describe_job(job_id)
    if job.model is None:
        raise NotFound(f"job {job_id} is {job.state} and has published no model")
    name, _, version = job.model.partition("@")
    return f"models/{name}/{version}/"


def _model_files(parts: Gateway, prefix: str) -> dict[str, dict[str, int | str]]:
    files: dict[str, dict[str, int | str]] = json.loads(parts.store.get(f"{prefix}manifest.json"))[
        "files"
    ]
    return files
