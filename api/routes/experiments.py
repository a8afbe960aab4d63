"""Experiments: start, look, stop."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.bodies import Route
from api.context import Parts, Reader, Submitter
from api.named_files import check_named_files
from api.problems import problem_responses
from api.routes.jobs import IdempotencyKey
from loomos.client.experiment_models import ExperimentList, Stopping
from loomos.jobs.experiments import ExperimentStatus, StopRequest, TrialPage, TrialsQuery
from loomos.manifest import Experiment

router = APIRouter(route_class=Route, prefix="/api/v1/experiments", tags=["experiments"])

ExperimentId = Annotated[
    str, Path(min_length=1, max_length=128, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
]
SHOWN = 50


@router.post("", status_code=201, responses=problem_responses(404, 409))
async def start_experiment(
    experiment: Experiment,
    parts: Parts,
    who: Submitter,
    idempotency_key: IdempotencyKey = None,
) -> ExperimentStatus:
    """Start an experiment. With an `Idempotency-Key`, sending it again gives the same one."""
    await check_named_files(experiment, parts)
    return await parts.experiments.start(experiment, who.subject, idempotency_key)


@router.get("", responses=problem_responses())
async def list_experiments(parts: Parts, who: Reader) -> ExperimentList:
    """The newest experiments."""
    return ExperimentList(experiments=await parts.experiments.newest(SHOWN))


@router.get("/{experiment_id}", responses=problem_responses(404))
async def get_experiment(
    experiment_id: ExperimentId, parts: Parts, who: Reader
) -> ExperimentStatus:
    """An experiment, with its best trial or its Pareto front."""
    return await parts.experiments.get(experiment_id)


@router.get("/{experiment_id}/trials", responses=problem_responses(404))
async def list_trials(
    experiment_id: ExperimentId,
    parts: Parts,
    who: Reader,
    since: Annotated[int, Query(ge=0, le=1_000_000, description="`next` of an earlier page.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 500,
) -> TrialPage:
    """Trials that have finished, in the order in which they did."""
    return await parts.experiments.trials(experiment_id, TrialsQuery(since=since, limit=limit))


@router.delete("/{experiment_id}", status_code=204, responses=problem_responses(404, 409))
async def delete_experiment(experiment_id: ExperimentId, parts: Parts, who: Submitter) -> None:
    """Delete an experiment that has ended, with its trials; models stay."""
    await parts.experiments.delete(experiment_id)


@router.post("/{experiment_id}/stop", status_code=202, responses=problem_responses(404, 409))
async def stop_experiment(
    experiment_id: ExperimentId, parts: Parts, who: Submitter, stopping: Stopping | None = None
) -> ExperimentStatus:
    """Start no more trials; those that run end, and the experiment is complete."""
    reason = stopping.reason if stopping else ""
    request = StopRequest(reason=reason, person=who.subject)
    return await parts.experiments.stop(experiment_id, request)


@router.post("/{experiment_id}/cancel", status_code=202, responses=problem_responses(404, 409))
async def cancel_experiment(
    experiment_id: ExperimentId, parts: Parts, who: Submitter
) -> ExperimentStatus:
    """End an experiment and the trials that run."""
    return await parts.experiments.cancel(experiment_id)
