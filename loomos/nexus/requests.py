"""What a training job asks of the cluster."""

from __future__ import annotations

from datetime import datetime

from loomos.jobs.cluster import LeaseRequest
from loomos.jobs.training import Progress, ResolvedInputs, TrainingRunInput
from loomos.nexus.usage import Waiting


def training_request(
    job: TrainingRunInput, submitted_at: datetime, inputs: ResolvedInputs | None = None
) -> LeaseRequest:
    """The request of a job, as its manifest has it.

    Args:
        job: the job.
        submitted_at: its age in the queue, however often it comes back.
        inputs: what its model and data are, once that is known.
    """
    spec = job.spec
    return LeaseRequest(
        job_id=job.job_id,
        run_id="",
        ticket=0,
        resources=spec.resources,
        submitted_at=submitted_at,
        batch_size=spec.divisible_by_ranks,
        priority=spec.priority,
        project=job.project,
        estimate=spec.runtime.estimate,
        deadline=spec.runtime.deadline,
        is_preemptible=spec.runtime.preemptible,
        affinity=[inputs.model.sha256, inputs.training.sha256] if inputs else [],
    )


def why_not_on(request: LeaseRequest, node_ids: list[str]) -> str:
    """Why a job cannot run on these nodes alone, by their number; empty if it can."""
    named = len(set(node_ids))
    counts = Waiting(request, request.submitted_at).counts
    if any(count <= named for count in counts):
        return ""
    fewest = counts[0] if counts else request.resources.node_range.min
    return (
        f"nodes: it needs at least {fewest} nodes and {named} "
        f"{'is' if named == 1 else 'are'} named; name {fewest} or more"
    )


def workload(job: TrainingRunInput, inputs: ResolvedInputs, world_size: int) -> str:
    """Equal for gangs whose step times can be compared."""
    spec = job.spec
    shape = f"{spec.algorithm}/{spec.work_per_step}"
    if spec.model is not None:
        tuning = spec.model.fine_tuning_config
        size = f"{tuning.batch_size}x{tuning.sequence_length}"
        shape = f"{spec.algorithm}/{tuning.method}/{size}/{tuning.precision}"
    return f"{inputs.model.sha256[:32]}/{shape}/{world_size}"


def step_seconds(job: TrainingRunInput, progress: Progress | None) -> float | None:
    """Seconds that an optimizer step takes, by the newest progress."""
    rate = progress and (progress.tokens_per_s or progress.environment_steps_per_s)
    return job.spec.work_per_step / rate if rate else None
