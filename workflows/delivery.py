"""What follows a training: the published version is verified, then put on trial."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ChildWorkflowError, WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.names import (
        ROLLOUT_KIND,
        VERIFICATION_KIND,
        rollout_workflow_id,
        verification_workflow_id,
    )
    from loomos.jobs.rollouts import RolloutInput, RolloutSpec, RolloutStatus
    from loomos.jobs.states import JobState
    from loomos.jobs.training import ModelVersion, TrainingRunInput
    from loomos.jobs.verification import VerificationInput, VerificationResult
    from loomos.search_attributes import KIND, NAME, OWNER
    from workflows.causes import is_own_cancel
    from workflows.journal import Journal


class Delivered(NamedTuple):
    """What came of a published version."""

    said: str = ""
    """To be added to the job's last message."""
    verdict: str = ""
    """What Prism said."""
    rollout: str = ""
    """How its trial ended."""


async def deliver(job: TrainingRunInput, model: ModelVersion, journal: Journal) -> Delivered:
    """Verify and roll out what a job has published, as its manifest says.

    A version that is not good enough is no failure of the training.
    """
    version = f"{model.name}@{model.version}"
    said = verdict = ""
    if job.spec.verify is not None:
        journal.enter(JobState.VERIFYING, f"Prism asks {version}")
        try:
            result = await verify(
                VerificationInput(
                    verification_id=verification_workflow_id(job.job_id),
                    owner=job.owner,
                    model=version,
                    spec=job.spec.verify,
                )
            )
        except ChildWorkflowError as error:
            if is_own_cancel(error):
                raise asyncio.CancelledError from None
            return Delivered(f"; not verified: {error.cause or error}", "ERROR")
        verdict = result.verdict
        said = f"; verified: {verdict}"
        if verdict != "PASS":
            return Delivered(said, verdict)
    if job.spec.rollout is None:
        return Delivered(said, verdict)
    plan = job.spec.rollout
    journal.enter(JobState.ROLLING_OUT, f"{version} on trial at {plan.endpoint}")
    spec = RolloutSpec.model_validate({**plan.model_dump(), "model": version})
    try:
        status = await roll_out(RolloutInput(name=job.name, owner=job.owner, spec=spec))
    except WorkflowAlreadyStartedError:
        return Delivered(f"{said}; {plan.endpoint} has another version on trial", verdict)
    except ChildWorkflowError as error:
        if is_own_cancel(error):
            raise asyncio.CancelledError from None
        return Delivered(f"{said}; not rolled out: {error.cause or error}", verdict)
    return Delivered(f"{said}; {status.state} at {plan.endpoint}", verdict, status.state)


async def verify(job: VerificationInput) -> VerificationResult:
    """Verify a version, as a workflow of its own."""
    result: VerificationResult = await workflow.execute_child_workflow(
        "VerificationSuite",
        job,
        id=job.verification_id,
        result_type=VerificationResult,
        static_summary=f"verify {job.model}",
        search_attributes=attributes(VERIFICATION_KIND, job.model.partition("@")[0], job.owner),
    )
    return result


async def roll_out(rollout: RolloutInput) -> RolloutStatus:
    """Put a version on trial, as a workflow of its own."""
    status: RolloutStatus = await workflow.execute_child_workflow(
        "CanaryRollout",
        rollout,
        id=rollout_workflow_id(rollout.spec.endpoint),
        result_type=RolloutStatus,
        static_summary=f"{rollout.spec.model} to {rollout.spec.endpoint}",
        search_attributes=attributes(ROLLOUT_KIND, rollout.spec.endpoint, rollout.owner),
    )
    return status


def attributes(kind: str, name: str, owner: str) -> TypedSearchAttributes:
    """How a child workflow is found."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(KIND, kind),
            SearchAttributePair(NAME, name),
            SearchAttributePair(OWNER, owner),
        ]
    )
