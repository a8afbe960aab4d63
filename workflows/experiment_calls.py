"""Activities of experiments, called by name, with their time-outs and retries."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.experiments import (
        Suggested,
        SuggestRequest,
        TrialRequest,
        TrialResult,
        WarmStart,
        WarmStartRequest,
    )
    from loomos.jobs.names import POOL_QUEUE
    from workflows.calls import HEARTBEAT_TIMEOUT

MOST_LOST = 10
"""Nodes that a trial may take down before it counts as failed."""

TRIAL = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=10),
    maximum_attempts=MOST_LOST,
)
STUDY_TIMEOUT = timedelta(seconds=5)
"""A control worker that is silent for so long while it chooses is taken for dead."""
STUDY = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=5),
    maximum_attempts=20,
)
ASKING = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=5),
    non_retryable_error_types=["InvalidInput", "NotFound"],
)


async def suggest(request: SuggestRequest) -> Suggested:
    """The next points."""
    found: Suggested = await workflow.execute_activity(
        "suggest",
        request,
        result_type=Suggested,
        start_to_close_timeout=timedelta(hours=1),
        heartbeat_timeout=STUDY_TIMEOUT,
        retry_policy=STUDY,
        summary=f"choose {request.count} from {request.first}",
    )
    return found


async def read_earlier(request: WarmStartRequest) -> WarmStart:
    """Trials of earlier experiments."""
    found: WarmStart = await workflow.execute_activity(
        "read_earlier",
        request,
        result_type=WarmStart,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=ASKING,
        summary=f"learn from {', '.join(request.experiments)}",
    )
    return found


async def run_trial(request: TrialRequest, priority: Priority) -> TrialResult:
    """One trial, on whichever node has a slot free; a lost node's trial goes to another."""
    result: TrialResult = await workflow.execute_activity(
        "run_trial",
        request,
        result_type=TrialResult,
        task_queue=POOL_QUEUE,
        start_to_close_timeout=request.timeout + timedelta(minutes=1),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=TRIAL,
        cancellation_type=ActivityCancellationType.TRY_CANCEL,
        priority=priority,
        activity_id=f"trial-{request.number}-{request.retry}",
    )
    return result
