"""Typed stubs of activities, with the timeouts and retries of each, in one place.

Workflows call activities by name through these, so that no workflow imports what an activity
needs. Every activity has a start-to-close time-out and, past ten seconds, a heartbeat time-out.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityHandle

with workflow.unsafe.imports_passed_through():
    from loomos.errors import NON_RETRYABLE_TRAINING_ERRORS
    from loomos.jobs.cluster import LeaseAudit, NodeInfo
    from loomos.jobs.facts import AttestModel, RecordCheckpoints, RecordFacts, SignVersion
    from loomos.jobs.message import Empty
    from loomos.jobs.training import (
        AttemptPlan,
        JobsEnded,
        JobsLook,
        ModelVersion,
        OpenAttempt,
        PublishRequest,
        ResolvedInputs,
        TrainAssignment,
        TrainOutcome,
    )
    from loomos.manifest import TrainingSpec

HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""A node or a gang member that is silent for so long is dead."""

START_TIMEOUT = timedelta(seconds=20)
"""A node that does not pick up its task for so long is dead."""

FOR_EVER = timedelta(days=3650)

QUICK = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=5),
    non_retryable_error_types=NON_RETRYABLE_TRAINING_ERRORS,
)
ONCE = RetryPolicy(maximum_attempts=1)
THRICE = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(seconds=10),
    maximum_attempts=3,
)


async def resolve_inputs(spec: TrainingSpec) -> ResolvedInputs:
    """Pin model and data to digests."""
    inputs: ResolvedInputs = await workflow.execute_activity(
        "resolve_inputs",
        spec,
        result_type=ResolvedInputs,
        start_to_close_timeout=timedelta(hours=6),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary="pin model and data",
    )
    return inputs


async def look_at_jobs(look: JobsLook) -> JobsEnded:
    """Which of some jobs have ended."""
    found: JobsEnded = await workflow.execute_activity(
        "look_at_jobs",
        look,
        result_type=JobsEnded,
        start_to_close_timeout=timedelta(minutes=1),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary="look whether they have ended",
    )
    return found


async def open_attempt(request: OpenAttempt) -> AttemptPlan:
    """Start a new generation."""
    plan: AttemptPlan = await workflow.execute_activity(
        "open_attempt",
        request,
        result_type=AttemptPlan,
        start_to_close_timeout=timedelta(minutes=2),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary="fence older attempts",
    )
    return plan


def start_train(
    job: TrainAssignment, summary: str, priority: int = 3
) -> ActivityHandle[TrainOutcome]:
    """Start one node's part of a gang. It is never retried: the workflow makes a new gang."""
    return workflow.start_activity(
        "train",
        job,
        result_type=TrainOutcome,
        task_queue=job.nodes[job.node_rank].task_queue,
        schedule_to_start_timeout=START_TIMEOUT,
        start_to_close_timeout=FOR_EVER,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=ONCE,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        priority=Priority(priority_key=priority),
        summary=summary,
    )


def start_publish(request: PublishRequest, node: NodeInfo) -> ActivityHandle[ModelVersion]:
    """Turn the last checkpoint into a model version, on a node that has torch."""
    return workflow.start_activity(
        "publish_model",
        request,
        result_type=ModelVersion,
        task_queue=node.task_queue,
        schedule_to_start_timeout=START_TIMEOUT,
        start_to_close_timeout=timedelta(hours=6),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=ONCE,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=f"publish {request.name}, step {request.step}",
    )


def start_record(request: RecordFacts) -> ActivityHandle[Empty]:
    """Put facts into the ledger; tried until they are there."""
    return workflow.start_activity(
        "record_facts",
        request,
        result_type=Empty,
        start_to_close_timeout=timedelta(minutes=1),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary=f"record {', '.join(fact.event_type for fact in request.facts)}",
    )


def start_record_checkpoints(request: RecordCheckpoints) -> ActivityHandle[Empty]:
    """Put the job's new checkpoints into the ledger; tried until they are there."""
    return workflow.start_activity(
        "record_checkpoints",
        request,
        result_type=Empty,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary="record checkpoints",
    )


async def attest_model(request: AttestModel) -> None:
    """Sign the model's provenance and put its publication into the ledger."""
    await workflow.execute_activity(
        "attest_model",
        request,
        result_type=Empty,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary=f"attest {request.model.name}@{request.model.version}",
    )


async def sign_version(version: str) -> None:
    """Make a version exist that a node has uploaded as a draft."""
    await workflow.execute_activity(
        "sign_version",
        SignVersion(version=version),
        result_type=Empty,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary=f"sign {version}",
    )


async def noop() -> None:
    """Do nothing, on a control worker."""
    await workflow.execute_activity(
        "noop", start_to_close_timeout=timedelta(seconds=10), retry_policy=QUICK
    )


async def hold_node(info: NodeInfo, silence: timedelta = HEARTBEAT_TIMEOUT) -> None:
    """Heartbeat from a node for as long as it lives; ends only when it is lost or leaves."""
    await workflow.execute_activity(
        "hold_node",
        info,
        result_type=Empty,
        task_queue=info.task_queue,
        schedule_to_start_timeout=max(START_TIMEOUT, silence),
        start_to_close_timeout=FOR_EVER,
        heartbeat_timeout=silence,
        retry_policy=ONCE,
        cancellation_type=ActivityCancellationType.ABANDON,
        summary=f"node {info.node_id}",
    )


async def audit_leases(audit: LeaseAudit, *, bounded: bool) -> LeaseAudit:
    """Which of these holders are gone; `bounded` says that it may fail, and is tried thrice."""
    gone: LeaseAudit = await workflow.execute_activity(
        "audit_leases",
        audit,
        result_type=LeaseAudit,
        schedule_to_close_timeout=timedelta(minutes=5) if bounded else None,
        start_to_close_timeout=timedelta(minutes=1),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=THRICE if bounded else QUICK,
        summary="look for lost holders",
    )
    return gone
