"""Activities of campaigns, called by name, with their time-outs and retries."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from loomos.errors import NON_RETRYABLE_TRAINING_ERRORS
    from loomos.jobs.campaigns import Blended, BlendRequest
    from loomos.jobs.names import POOL_QUEUE
    from workflows.calls import HEARTBEAT_TIMEOUT

BLEND = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=10),
    maximum_attempts=20,
    non_retryable_error_types=NON_RETRYABLE_TRAINING_ERRORS,
)


async def blend_policies(request: BlendRequest, priority: Priority) -> Blended:
    """Average policies and appraise what comes of it, on a node with pool slots."""
    found: Blended = await workflow.execute_activity(
        "blend_policies",
        request,
        result_type=Blended,
        task_queue=POOL_QUEUE,
        start_to_close_timeout=timedelta(hours=6),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=BLEND,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        priority=priority,
        summary=f"average {len(request.policies)} policies, play {request.episodes} episodes",
    )
    return found
