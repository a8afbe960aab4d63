"""Garbage collection: a Temporal Schedule starts it, or a person; see `loomos.retention`.

A run does a bounded number of bounded parts. Where it stops, the next run of the schedule goes on.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.retention import (
        CollectionInput,
        CollectionReport,
        Freed,
        Sweepable,
        SweepRequest,
        Swept,
    )
    from workflows.calls import HEARTBEAT_TIMEOUT
    from workflows.causes import root_cause

MOST_PARTS = 50
"""Parts of one class in one run."""
RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(minutes=1),
    maximum_attempts=5,
)


@workflow.defn(name="GarbageCollection")
class GarbageCollection:
    """One collection."""

    @workflow.run
    async def run(self, collection: CollectionInput) -> CollectionReport:
        """Go through every class; a class that fails does not keep the others from it."""
        before: dict[Sweepable, str] = {}
        if workflow.has_last_completion_result():
            last = workflow.get_last_completion_result(CollectionReport)
            before = last.unfinished if isinstance(last, CollectionReport) else {}
        freed: list[Freed] = []
        unfinished: dict[Sweepable, str] = {}
        for what in Sweepable:
            workflow.set_current_details(f"{'looks at' if collection.dry_run else 'frees'} {what}")
            done, cursor = await _sweep(what, collection.dry_run, before.get(what, ""))
            freed.append(done)
            if cursor is not None:
                unfinished[what] = cursor
        return CollectionReport(dry_run=collection.dry_run, freed=freed, unfinished=unfinished)


async def _sweep(what: Sweepable, dry_run: bool, after: str) -> tuple[Freed, str | None]:
    """A class, or as much of it as one run does; what was freed, and where to go on."""
    objects = size = 0
    notes: list[str] = []
    cursor: str | None = after
    for _ in range(MOST_PARTS):
        try:
            swept: Swept = await workflow.execute_activity(
                "sweep_store",
                SweepRequest(what=what, dry_run=dry_run, after=cursor or ""),
                result_type=Swept,
                start_to_close_timeout=timedelta(hours=1),
                heartbeat_timeout=3 * HEARTBEAT_TIMEOUT,
                retry_policy=RETRY,
                summary=f"{what} after {cursor}" if cursor else what.value,
            )
        except ActivityError as error:
            notes.append(root_cause(error)[:300])
            break
        objects += swept.objects
        size += swept.size_bytes
        if swept.held and swept.held not in notes:
            notes.append(swept.held)
        cursor = swept.next
        if cursor is None:
            break
    note = "; ".join(notes[:5])
    return Freed(what=what, objects=objects, size_bytes=size, note=note), cursor
