"""Trials with a page of their own: child `TrainingRun`s, with leases and several nodes."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.experiments import ExperimentInput, TrialRequest, TrialResult, TrialState
    from loomos.jobs.training import TrainingRunInput
    from loomos.weaver.results import training_result
    from workflows.causes import root_cause
    from workflows.child_jobs import run_job

EXPERIMENT_LABEL = "experiment"
"""Label of a trial's job: the experiment's id."""


async def run_as_job(run: ExperimentInput, request: TrialRequest) -> TrialResult:
    """Run a trial as a job; a job that fails is a trial that failed."""
    assert request.training is not None
    began = workflow.now()
    job_id = request.job_id + (f"-r{request.retry}" if request.retry else "")
    job = TrainingRunInput(
        job_id=job_id,
        name=job_id,
        owner=run.owner,
        project=run.project,
        labels={EXPERIMENT_LABEL: run.experiment_id},
        spec=request.training,
        most_reports=request.most_reports,
        pruning=request.pruning,
    )
    try:
        result = await run_job(
            job, name=run.name, summary=f"trial {request.number} of {run.experiment_id}"
        )
    except ChildWorkflowError as error:
        return TrialResult(state=TrialState.FAILED, error=root_cause(error)[:1000])
    assert result.outcome is not None
    return training_result(request, result.outcome, (workflow.now() - began).total_seconds())
