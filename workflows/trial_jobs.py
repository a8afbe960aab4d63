"""Trials with a page of their own: child `TrainingRun`s, with leases and several nodes."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ChildWorkflowError, is_cancelled_exception
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.experiments import ExperimentInput, TrialRequest, TrialResult, TrialState
    from loomos.jobs.names import JOB_KIND, label_list
    from loomos.jobs.states import JobState
    from loomos.jobs.training import JobResult, TrainingRunInput
    from loomos.search_attributes import KIND, LABELS, NAME, OWNER, PRIORITY, PROJECT, STATE
    from loomos.weaver.results import training_result
    from workflows.causes import root_cause

EXPERIMENT_LABEL = "experiment"
"""Label of a trial's job: the experiment's id."""


async def run_as_job(run: ExperimentInput, request: TrialRequest) -> TrialResult:
    """Run a trial as a job; a job that fails is a trial that failed."""
    assert request.training is not None
    began = workflow.now()
    labels = {EXPERIMENT_LABEL: run.experiment_id}
    job_id = request.job_id + (f"-r{request.retry}" if request.retry else "")
    try:
        result: JobResult = await workflow.execute_child_workflow(
            "TrainingRun",
            TrainingRunInput(
                job_id=job_id,
                name=job_id,
                owner=run.owner,
                project=run.project,
                labels=labels,
                spec=request.training,
                most_reports=request.most_reports,
                pruning=request.pruning,
            ),
            id=job_id,
            result_type=JobResult,
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            cancellation_type=ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
            task_timeout=timedelta(seconds=5),
            static_summary=f"trial {request.number} of {run.experiment_id}",
            search_attributes=TypedSearchAttributes(
                [
                    SearchAttributePair(KIND, JOB_KIND),
                    SearchAttributePair(NAME, run.name),
                    SearchAttributePair(OWNER, run.owner),
                    SearchAttributePair(PROJECT, run.project),
                    SearchAttributePair(STATE, JobState.QUEUED.value),
                    SearchAttributePair(PRIORITY, request.training.priority),
                    SearchAttributePair(LABELS, label_list(labels)),
                ]
            ),
        )
    except ChildWorkflowError as error:
        if is_cancelled_exception(error):
            raise asyncio.CancelledError from None
        return TrialResult(state=TrialState.FAILED, error=root_cause(error)[:1000])
    assert result.outcome is not None
    return training_result(request, result.outcome, (workflow.now() - began).total_seconds())
