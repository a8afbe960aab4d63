"""Activities that any control worker may run: they touch the store and Temporal, not torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.failures import final_when_repeated, in_thread
from loomos.errors import Unavailable
from loomos.jobs.cluster import LeaseAudit
from loomos.jobs.states import JobState
from loomos.jobs.training import AttemptPlan, JobsEnded, JobsLook, OpenAttempt, ResolvedInputs
from loomos.local_files import Reach
from loomos.manifest import TrainingSpec
from loomos.retention.references import write_references
from loomos.settings import Settings
from loomos.storage import open_store

PINNED_AGAIN = 3
"""Times that inputs are pinned if garbage collection takes old ones away meanwhile."""

_ENDS: dict[WorkflowExecutionStatus | None, JobState] = {
    WorkflowExecutionStatus.COMPLETED: JobState.COMPLETED,
    WorkflowExecutionStatus.CANCELED: JobState.CANCELLED,
}

LOOKS_AT_ONCE = 8
"""Holders that an audit asks Temporal about at the same time."""


class ControlActivities:
    """Activities of the control worker."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings, self._client = settings, client
        self._reach = Reach.of(settings)

    @activity.defn
    async def resolve_inputs(self, spec: TrainingSpec) -> ResolvedInputs:
        """Pin model and data to digests and put local files into the store."""
        from loomos.training.resolve import resolve

        run_id = activity.info().workflow_id
        store = open_store(self._settings.storage)

        def work(say: Callable[[str], None]) -> ResolvedInputs:
            for _ in range(PINNED_AGAIN):
                inputs = resolve(spec, self._settings.storage, say, self._reach)
                # Only now garbage collection knows that the run needs them; what it has taken
                # away meanwhile, for it was there and old, is put there again.
                lost = write_references(store, run_id or "", spec, inputs)
                if not lost:
                    return inputs
                say(f"{len(lost)} inputs have gone; pinning again")
            raise Unavailable(f"{lost[0]} vanishes from the store as often as it is put there")

        with final_when_repeated("model and data cannot be pinned"):
            return await in_thread(work)

    @activity.defn
    async def open_attempt(self, request: OpenAttempt) -> AttemptPlan:
        """Make a new generation the current one; asked again, it answers the same."""
        from loomos.training.fences import open_generation

        store = open_store(self._settings.storage)
        return await in_thread(
            lambda say: open_generation(
                store, request.job_id, request.claim, from_scratch=request.from_scratch
            )
        )

    @activity.defn
    async def noop(self) -> None:
        """Do nothing."""

    @activity.defn
    async def audit_leases(self, audit: LeaseAudit) -> LeaseAudit:
        """Of these holders, those that are closed or unknown."""
        places = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def is_gone(job_id: str, run_id: str) -> bool:
            async with places:
                activity.heartbeat(job_id)
                return await self._status(job_id, run_id) != WorkflowExecutionStatus.RUNNING

        found = await asyncio.gather(*(is_gone(*holder) for holder in audit.holders))
        gone = [holder for holder, is_lost in zip(audit.holders, found, strict=True) if is_lost]
        return LeaseAudit(holders=gone)

    @activity.defn
    async def look_at_jobs(self, look: JobsLook) -> JobsEnded:
        """Of these jobs, those that have ended, and how."""
        ended: dict[str, JobState] = {}
        for job_id in look.job_ids:
            activity.heartbeat(job_id)
            status = await self._status(job_id)
            if status != WorkflowExecutionStatus.RUNNING:
                ended[job_id] = _ENDS.get(status, JobState.FAILED)
        return JobsEnded(ended=ended)

    async def _status(
        self, job_id: str, run_id: str | None = None
    ) -> WorkflowExecutionStatus | None:
        """How a workflow is; None if it is not known."""
        handle = self._client.get_workflow_handle(job_id, run_id=run_id)
        try:
            return (await handle.describe()).status
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return None
