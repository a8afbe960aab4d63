"""Server-sent events: states, progress, metrics and logs of a job as they come.

An event's id says how far a stream has come, so a client that was cut off goes on where it was
by `Last-Event-ID` (WHATWG HTML, server-sent events). A `Position` among the chunks is such an id.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from fastapi.responses import StreamingResponse

from loomos.client.models import JobDetail
from loomos.client.workflows import WorkflowClient
from loomos.errors import InvalidInput
from loomos.storage import Store
from loomos.storage.records import ALL, Position, Wanted, read_newest, read_records

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

    Ids are `<timeline sequence>/<position among the event chunks>`.
    """
    sequence, after = _parse(last_id)
    shown: Any = None
    quiet_since = time.monotonic()
    while True:
        job = await recent.get(job_id)
        records, now = await asyncio.to_thread(read_records, store, prefix, after)
        for number, record in enumerate(records, start=1):
            # Cut off before the last of them, a client gets them all again rather than none.
            after = now if number == len(records) else after
            yield event("event", record, f"{sequence}/{after}")
        after = now
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


class RecordSource(NamedTuple):
    """Records that are followed."""

    store: Store
    """Where they are."""
    prefix: str
    """Below which key."""
    kind: str
    """As their events are called."""
    wanted: Wanted = ALL
    """Which of them."""


async def job_records(
    recent: RecentJobs,
    source: RecordSource,
    job_id: str,
    after: Position,
    tail: int | None = None,
) -> AsyncIterator[str]:
    """Metrics or logs as they are written, until the job has ended. Ids are positions.

    Args:
        recent: the jobs.
        source: which records.
        job_id: of which job.
        after: where to go on.
        tail: begin with so many of the newest, instead of at `after`.
    """
    quiet_since = time.monotonic()
    store, prefix, kind, wanted = source
    while True:
        is_final = (await recent.get(job_id)).state.is_final
        if tail is not None:
            records, after = await asyncio.to_thread(read_newest, store, prefix, wanted, tail)
            tail = None
        else:
            records, after = await asyncio.to_thread(read_records, store, prefix, after, wanted)
        for record in records[:-1]:
            yield event(kind, record)
        if records:
            quiet_since = time.monotonic()
            yield event(kind, records[-1], str(after))
        if is_final:
            yield event("end", {})
            return
        if time.monotonic() - quiet_since > KEEP_ALIVE_S:
            quiet_since = time.monotonic()
            yield ": alive\n\n"
        await asyncio.sleep(POLL_S)


def _parse(last_id: str | None) -> tuple[int, Position]:
    sequence, _, after = (last_id or "").partition("/")
    try:
        return int(sequence), Position.parse(after)
    except (ValueError, InvalidInput):
        return 0, Position()
