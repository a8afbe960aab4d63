"""Activities of what comes after training, called by name, with their time-outs and retries."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityHandle

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.cluster import NodeInfo
    from loomos.jobs.continual import Collected, CollectRequest, Conclude
    from loomos.jobs.message import Empty
    from loomos.jobs.rollouts import (
        CanaryClosed,
        CanaryOpened,
        CloseCanary,
        OpenCanary,
        SetTraffic,
        StageVerdict,
        WatchStage,
    )
    from loomos.jobs.serving import (
        CloseEndpoint,
        ModelChange,
        OpenEndpoint,
        Placement,
        PlaceReplicas,
        Route,
        WatchEndpoint,
    )
    from loomos.jobs.training import ModelVersion
    from loomos.jobs.verification import (
        JudgeRequest,
        PlanRef,
        PlanRequest,
        ShardDone,
        ShardRequest,
        VerificationResult,
    )
    from workflows.calls import FOR_EVER, HEARTBEAT_TIMEOUT, ONCE, QUICK, START_TIMEOUT

# --- endpoints and the registry -----------------------------------------------------------------

STORE = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=5),
    non_retryable_error_types=["InvalidInput", "NotFound", "Conflict", "VerificationFailed"],
)


async def open_endpoint(request: OpenEndpoint) -> Route:
    """Write an endpoint's first row, or one with a changed spec."""
    route: Route = await workflow.execute_activity(
        "open_endpoint",
        request,
        result_type=Route,
        start_to_close_timeout=timedelta(minutes=2),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary=f"serve {request.spec.model} as {request.name}",
    )
    return route


def start_watch_endpoint(watch: WatchEndpoint) -> ActivityHandle[Placement]:
    """Look at the servers until somebody else should hold the models."""
    return workflow.start_activity(
        "watch_endpoint",
        watch,
        result_type=Placement,
        start_to_close_timeout=FOR_EVER,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        cancellation_type=ActivityCancellationType.TRY_CANCEL,
        summary="watch servers",
    )


async def place_replicas(request: PlaceReplicas) -> Route:
    """Write who holds an endpoint's models."""
    route: Route = await workflow.execute_activity(
        "place_replicas",
        request,
        result_type=Route,
        start_to_close_timeout=timedelta(minutes=2),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary=f"held by {', '.join(request.replicas) or 'nobody'}",
    )
    return route


async def close_endpoint(request: CloseEndpoint) -> None:
    """Write that an endpoint is gone."""
    await workflow.execute_activity(
        "close_endpoint",
        request,
        result_type=Empty,
        start_to_close_timeout=timedelta(minutes=2),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary=f"delete {request.name}",
    )


async def change_registry(change: ModelChange) -> ModelVersion:
    """Register a version, move an alias, or delete a version."""
    made: ModelVersion = await workflow.execute_activity(
        "change_registry",
        change,
        result_type=ModelVersion,
        start_to_close_timeout=timedelta(hours=1),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary=f"{change.action} {change.name} {change.alias}".strip(),
    )
    return made


# --- rollouts -----------------------------------------------------------------------------------


def start_open_canary(request: OpenCanary) -> ActivityHandle[CanaryOpened]:
    """Check a candidate and have it loaded."""
    return workflow.start_activity(
        "open_canary",
        request,
        result_type=CanaryOpened,
        start_to_close_timeout=timedelta(hours=1),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=f"preflight of {request.spec.model}",
    )


async def set_traffic(request: SetTraffic) -> Route:
    """Give the canary a share."""
    route: Route = await workflow.execute_activity(
        "set_traffic",
        request,
        result_type=Route,
        start_to_close_timeout=timedelta(minutes=2),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary=f"{request.canary_bp / 100:g} % to the canary",
    )
    return route


def start_watch_stage(watch: WatchStage, summary: str) -> ActivityHandle[StageVerdict]:
    """Judge a stage; asked to stop, it answers with what it has seen."""
    return workflow.start_activity(
        "watch_stage",
        watch,
        result_type=StageVerdict,
        start_to_close_timeout=FOR_EVER,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=summary,
    )


async def close_canary(request: CloseCanary) -> CanaryClosed:
    """Take the canary out of the row; tried until it is done."""
    closed: CanaryClosed = await workflow.execute_activity(
        "close_canary",
        request,
        result_type=CanaryClosed,
        start_to_close_timeout=timedelta(minutes=2),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=QUICK,
        summary="promote" if request.promote else "roll back",
    )
    return closed


# --- verification -------------------------------------------------------------------------------


async def plan_verification(request: PlanRequest) -> PlanRef:
    """Fix the plan of a verification."""
    plan: PlanRef = await workflow.execute_activity(
        "plan_verification",
        request,
        result_type=PlanRef,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary=f"plan for {request.model}",
    )
    return plan


async def evaluate_shard(request: ShardRequest, node: NodeInfo) -> None:
    """Have a shard's answers in the store; a node that fails is not asked again by Temporal."""
    shard = request.shard
    await workflow.execute_activity(
        "evaluate_shard",
        request,
        result_type=ShardDone,
        task_queue=node.task_queue,
        schedule_to_start_timeout=START_TIMEOUT,
        start_to_close_timeout=timedelta(hours=6),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=ONCE,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=f"{shard.suite} {shard.role} {shard.number}: {shard.count} prompts",
    )


async def judge_verification(request: JudgeRequest) -> VerificationResult:
    """Score, decide, and write the reports."""
    result: VerificationResult = await workflow.execute_activity(
        "judge_verification",
        request,
        result_type=VerificationResult,
        start_to_close_timeout=timedelta(hours=6),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary="judge",
    )
    return result


# --- continual learning -------------------------------------------------------------------------


async def collect_samples(request: CollectRequest) -> Collected:
    """Collect what came since the last period."""
    collected: Collected = await workflow.execute_activity(
        "collect_samples",
        request,
        result_type=Collected,
        start_to_close_timeout=timedelta(hours=1),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary="collect new samples",
    )
    return collected


async def conclude_update(request: Conclude) -> None:
    """Write down what came of a period, and let go of old versions."""
    await workflow.execute_activity(
        "conclude_update",
        request,
        result_type=Empty,
        start_to_close_timeout=timedelta(minutes=10),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=STORE,
        summary=f"{request.decision}: {request.reason}"[:200],
    )
