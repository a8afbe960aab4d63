"""One period of continual learning: collect, update, verify, try, promote or discard.

A Temporal Schedule starts it; a period that is still on lets the next one pass. What comes of the
training is its own workflow's business: it verifies against stable and puts the update on trial.
Whatever is not a promotion leaves stable alone.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.continual import (
        Collected,
        CollectRequest,
        Conclude,
        ContinualInput,
    )
    from loomos.jobs.rollouts import RolloutState
    from loomos.jobs.training import JobResult, TrainingRunInput
    from loomos.manifest import Data, Model, RolloutPlan, TrainingSpec
    from workflows import delivery_calls
    from workflows.child_jobs import run_job


SCHEDULE_LABEL = "schedule"
"""Label of an update's job: the schedule's name."""


@workflow.defn(name="ContinualLearning")
class ContinualLearning:
    """One period."""

    @workflow.run
    async def run(self, period: ContinualInput) -> str:
        """Make the period's update, if there is something to learn; returns what came of it."""
        info = workflow.info()
        update_id = f"{info.workflow_id}/{info.run_id}"
        collected = await delivery_calls.collect_samples(
            CollectRequest(update_id=update_id, name=period.name, spec=period.spec)
        )
        began = workflow.now()
        result: JobResult | None = None
        failure = ""
        if not collected.reason:
            workflow.set_current_details(
                f"updates {collected.base} with {collected.samples} new and {collected.replayed} "
                "old samples"
            )
            try:
                result = await self._train(period, collected)
            except ChildWorkflowError as error:
                failure = str(error.cause or error)
        conclusion = _conclude(
            period, update_id, collected, result, failure, workflow.now() - began
        )
        await delivery_calls.conclude_update(conclusion)
        return f"{conclusion.decision}: {conclusion.reason}"

    async def _train(self, period: ContinualInput, collected: Collected) -> JobResult:
        spec = period.spec
        job_id = f"{period.name}-{workflow.info().run_id[:8]}"
        training = TrainingSpec(
            model=Model(
                base_model=f"model:{collected.base}",
                output_name=collected.model,
                fine_tuning_config=spec.update,
            ),
            data=Data(training_dataset=collected.dataset),
            priority=spec.priority,
            resources=spec.resources,
            verify=spec.verify.model_copy(update={"baseline": collected.base}),
            rollout=spec.rollout or RolloutPlan(endpoint=spec.endpoint),
        )
        job = TrainingRunInput(
            job_id=job_id,
            name=period.name,
            owner=period.owner,
            project=period.project,
            labels={SCHEDULE_LABEL: period.name},
            spec=training,
        )
        return await run_job(job, name=period.name, summary=f"update {collected.base}")


def _conclude(
    period: ContinualInput,
    update_id: str,
    collected: Collected,
    result: JobResult | None,
    failure: str,
    took: timedelta,
) -> Conclude:
    """What came of a period."""
    decision, reason = "failed", failure[:500]
    if collected.reason:
        decision, reason = "skipped", collected.reason
    elif result is not None and result.rollout == RolloutState.PROMOTED:
        decision, reason = "promoted", f"verified {result.verdict}, promoted"
    elif result is not None:
        decision = "discarded"
        reason = f"verified {result.verdict or 'not at all'}"
        if result.rollout:
            reason += f", {result.rollout}"
    return Conclude.model_validate(
        {
            "update_id": update_id,
            "name": period.name,
            "collected": collected,
            "decision": decision,
            "reason": reason,
            "result": result,
            "took": took if result is not None or failure else timedelta(0),
            "keep": period.spec.keep,
        }
    )
