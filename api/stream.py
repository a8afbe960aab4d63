"""Server-sent events: states, progress, metrics and logs of a job as they come.

An event's id says how far a stream has come, so a client that was cut off goes on where it was
by `Last-Event-ID` (WHATWG HTML, server-sent events). Chunk keys are such ids: they only grow.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from loomos.client.models import JobDetail
from loomos.client.workflows import WorkflowClient
from loomos.storage import Store
from loomos.storage.chunks import Chunk, read_chunks

POLL_S = 1.0
KEEP_ALIVE_S = 15.0
KEPT_JOBS = 1000


class RecentJobs:
    """Descriptions not older than a second, asked for once however many are watching."""

    def __init__(self, workflows: WorkflowClient) -> None:
        self._workflows = workflows
        self._asked: dict[str, tuple[float, asyncio.Task[JobDetail]]] = {}

    async def get(self, job_id: str) -> JobDetail:
        """The job, described now or a moment ago."""
        known = self._asked.get(job_id)
        if known is None or time.monotonic() - known[0] > POLL_S:
            if len(self._asked) >= KEPT_JOBS:
                self._asked.pop(next(iter(self._asked)))
            known = (
                time.monotonic(),
                asyncio.create_task(self._workflows.describe_job(job_id)),
            )
            self._asked[job_id] = known
        return await asyncio.shield(known[1])


def sse(events: AsyncIterator[str]) -> StreamingResponse:
    """The response that carries a stream of events."""
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def event(kind: str, data: Any, event_id: str | None = None) -> str:
    """One event as the wire has it."""
    body = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (
        f"id: {event_id}\n" if event_id is not None else ""
    ) + f"event: {kind}\ndata: {body}\n\n"


async def job_events(
    recent: RecentJobs, store: Store, prefix: str, job_id: str, last_id: str | None
) -> AsyncIterator[str]:
    """States, attempt events and progress until the job has ended.

    Ids are `<timeline sequence>/<key of the newest event chunk>`.
    """
    sequence, after = _parse(last_id)
    shown: Any = None
    quiet_since = time.monotonic()
    while True:
        job = await recent.get(job_id)
        for chunk in await _new_chunks(store, prefix, after):
            after = chunk.key
            for record in chunk.records:
                yield event("event", record, f"{sequence}/{after}")
        for entry in job.timeline:
            if entry.sequence > sequence:
                sequence = entry.sequence
                yield event("state", entry.model_dump(mode="json"), f"{sequence}/{after}")
        current = (job.state, job.progress, job.training)
        if current != shown:
            shown, quiet_since = current, time.monotonic()
            yield event("job", job.model_dump_json(exclude={"timeline", "spec"}))
        if job.state.is_final:
            yield event("end", {"state": job.state}, f"{sequence}/{after}")
            return
        if time.monotonic() - quiet_since > KEEP_ALIVE_S:
            quiet_since = time.monotonic()
            yield ": alive\n\n"
        await asyncio.sleep(POLL_S)


async def job_records(
    recent: RecentJobs, store: Store, prefix: str, job_id: str, kind: str, after: str
) -> AsyncIterator[str]:
    """Metrics or logs as they are written, until the job has ended. Ids are chunk keys."""
    quiet_since = time.monotonic()
    while True:
        is_final = (await recent.get(job_id)).state.is_final
        for chunk in await _new_chunks(store, prefix, after):
            after, quiet_since = chunk.key, time.monotonic()
            for record in chunk.records[:-1]:
                yield event(kind, record)
            yield event(kind, chunk.records[-1], after)
        if is_final:
            yield event("end", {})
            return
        if time.monotonic() - quiet_since > KEEP_ALIVE_S:
            quiet_since = time.monotonic()
            yield ": alive\n\n"
        await asyncio.sleep(POLL_S)


async def _new_chunks(store: Store, prefix: str, after: str) -> list[Chunk]:
    return await asyncio.to_thread(lambda: list(read_chunks(store, prefix, after)))


def _parse(last_id: str | None) -> tuple[int, str]:
    sequence, _, after = (last_id or "").partition("/")
    return (int(sequence), after) if sequence.isdigit() else (0, "")
