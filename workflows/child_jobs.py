"""Jobs that another workflow starts: child `TrainingRun`s, with pages and leases of their own."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ChildWorkflowError, is_cancelled_exception
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.names import JOB_KIND, label_list
    from loomos.jobs.states import JobState
    from loomos.jobs.training import JobResult, TrainingRunInput
    from loomos.search_attributes import KIND, LABELS, NAME, OWNER, PRIORITY, PROJECT, STATE


async def run_job(run: TrainingRunInput, *, name: str, summary: str) -> JobResult:
    """Run a job to its end; cancelled with its parent, and waited for.

    Args:
        run: the job.
        name: that of its parent, which lists show it under.
        summary: for Temporal's UI.

    Raises:
        ChildWorkflowError: it failed.
        asyncio.CancelledError: it was cancelled.
    """
    try:
        result: JobResult = await workflow.execute_child_workflow(
            "TrainingRun",
            run,
            id=run.job_id,
            result_type=JobResult,
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            cancellation_type=ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
            task_timeout=timedelta(seconds=5),
            priority=Priority(priority_key=run.spec.priority, fairness_key=run.project),
            static_summary=summary,
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(KIND, JOB_KIND),
                    SearchAttributePair(NAME, name),
                    SearchAttributePair(OWNER, run.owner),
                    SearchAttributePair(PROJECT, run.project),
                    SearchAttributePair(STATE, JobState.QUEUED.value),
                    SearchAttributePair(PRIORITY, run.spec.priority),
                    SearchAttributePair(LABELS, label_list(run.labels)),
                ]
            ),
        )
    except ChildWorkflowError as error:
        if is_cancelled_exception(error):
            raise asyncio.CancelledError from None
        raise
    return result
