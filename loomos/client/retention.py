"""Garbage collection straight on Temporal: its schedule, and collections that people ask for."""

from __future__ import annotations

import uuid
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecutionStatus,
    WorkflowFailureError,
)
from temporalio.service import RPCError, RPCStatusCode

from loomos.client.answers import answered
from loomos.errors import NotFound
from loomos.jobs.names import CONTROL_QUEUE, GARBAGE_SCHEDULE_ID, garbage_workflow_id
from loomos.jobs.retention import CollectionInput, CollectionReport, CollectionStatus


async def keep_schedule(client: Client, every: timedelta) -> None:
    """Have garbage collected in this interval, never if it is zero; done twice it is one."""
    handle = client.get_schedule_handle(GARBAGE_SCHEDULE_ID)
    if not every:
        try:
            await handle.delete()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
        return
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            "GarbageCollection",
            CollectionInput(),
            id=garbage_workflow_id("scheduled"),
            task_queue=CONTROL_QUEUE,
            execution_timeout=timedelta(hours=6),
            task_timeout=timedelta(seconds=5),
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(
            overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(minutes=10)
        ),
        state=ScheduleState(note="frees what nobody needs; settings: retention"),
    )

    def same_interval(found: ScheduleUpdateInput) -> ScheduleUpdate | None:
        known = found.description.schedule
        if [interval.every for interval in known.spec.intervals] == [every]:
            return None
        known.spec = schedule.spec
        return ScheduleUpdate(known)

    try:
        await client.create_schedule(GARBAGE_SCHEDULE_ID, schedule)
    except ScheduleAlreadyRunningError:
        await handle.update(same_interval)


class RetentionClient:
    """Starts collections and tells what came of them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def start(self, *, dry_run: bool, owner: str) -> CollectionStatus:
        """Start a collection, besides those of the schedule."""
        collection_id = uuid.uuid4().hex[:12]
        await answered(
            self._client.start_workflow(
                "GarbageCollection",
                CollectionInput(dry_run=dry_run),
                id=garbage_workflow_id(collection_id),
                task_queue=CONTROL_QUEUE,
                execution_timeout=timedelta(hours=6),
                task_timeout=timedelta(seconds=5),
                static_summary=f"{'dry run ' if dry_run else ''}for {owner}",
            )
        )
        return await self.get(collection_id)

    async def get(self, collection_id: str) -> CollectionStatus:
        """A collection that somebody asked for.

        Raises:
            NotFound: there is none of this id.
        """
        handle = self._client.get_workflow_handle(
            garbage_workflow_id(collection_id), result_type=CollectionReport
        )
        try:
            found = await answered(handle.describe())
        except NotFound:
            raise NotFound(f"no collection {collection_id!r}; it may be long over") from None
        report: CollectionReport | None = None
        if found.status == WorkflowExecutionStatus.COMPLETED:
            try:
                report = await answered(handle.result())
            except WorkflowFailureError:
                report = None
        return CollectionStatus(
            collection_id=collection_id,
            is_running=found.status == WorkflowExecutionStatus.RUNNING,
            started_at=found.start_time,
            report=report,
        )
