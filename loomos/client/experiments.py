"""Experiments straight on Temporal. The gateway stands on this."""

from __future__ import annotations

import uuid

from temporalio.client import Client, WorkflowExecution

from loomos.client.answers import answered
from loomos.client.documents import DocumentKind, DocumentWorkflows, summary_fields
from loomos.client.experiment_models import ExperimentSummary
from loomos.errors import Conflict, NotFound
from loomos.jobs.experiments import (
    ExperimentInput,
    ExperimentState,
    ExperimentStatus,
    StopRequest,
    TrialPage,
    TrialsQuery,
)
from loomos.jobs.names import EXPERIMENT_KIND, SUMMARY_MEMO, experiment_workflow_id
from loomos.manifest import Experiment

EXPERIMENTS = DocumentKind(kind=EXPERIMENT_KIND, workflow="ExperimentSweep", noun="experiment")


class ExperimentClient:
    """Starts, finds and steers experiments."""

    def __init__(self, client: Client) -> None:
        self._workflows = DocumentWorkflows(client, EXPERIMENTS)

    async def start(
        self, experiment: Experiment, owner: str, idempotency_key: str | None = None
    ) -> ExperimentStatus:
        """Start an experiment; the same key and document give the same one, once.

        Raises:
            NotFound: an experiment that it learns from is not known.
            Conflict: the key was used for another document.
        """
        for earlier in experiment.spec.warm_start:
            await self.get(earlier)
        metadata, spec = experiment.metadata, experiment.spec
        run = ExperimentInput(
            experiment_id=experiment_workflow_id(
                metadata.name, idempotency_key or uuid.uuid4().hex
            ),
            name=metadata.name,
            owner=owner,
            project=metadata.project,
            spec=spec,
        )
        await self._workflows.start(
            run.experiment_id,
            run,
            experiment,
            metadata,
            owner=owner,
            state=ExperimentState.PREPARING.value,
            priority=spec.priority,
            summary=f"{spec.sampler.name} search for {owner}",
        )
        return await self.get(run.experiment_id)

    async def get(self, experiment_id: str) -> ExperimentStatus:
        """An experiment.

        Raises:
            NotFound: there is none.
        """
        return await self._workflows.query(experiment_id, "status", ExperimentStatus)

    async def trials(self, experiment_id: str, query: TrialsQuery) -> TrialPage:
        """Trials that have finished, in that order.

        Raises:
            NotFound: there is no such experiment.
        """
        return await self._workflows.query(experiment_id, "trials", TrialPage, query)

    async def newest(self, limit: int) -> list[ExperimentSummary]:
        """The newest experiments, newest first, by one visibility call."""
        return [await _summary(execution) for execution in await self._workflows.newest(limit)]

    async def stop(self, experiment_id: str, request: StopRequest) -> ExperimentStatus:
        """Start no more trials; those that run end, and the experiment is complete.

        Raises:
            NotFound: there is no such experiment.
            Conflict: it has ended, or stops already.
        """
        before = await self.get(experiment_id)
        handle = self._workflows.handle(experiment_id)
        try:
            return await answered(
                handle.execute_update("stop", request, result_type=ExperimentStatus)
            )
        except NotFound:
            raise Conflict(f"the experiment {experiment_id} is {before.state}") from None

    async def cancel(self, experiment_id: str) -> ExperimentStatus:
        """End an experiment and the trials that run.

        Raises:
            NotFound: there is no such experiment.
            Conflict: it has ended.
        """
        before = await self.get(experiment_id)
        if before.state.is_final:
            raise Conflict(f"the experiment {experiment_id} is {before.state}; nothing to cancel")
        await answered(self._workflows.handle(experiment_id).cancel())
        return await self.get(experiment_id)


async def _summary(execution: WorkflowExecution) -> ExperimentSummary:
    return ExperimentSummary(
        experiment_id=execution.id,
        **summary_fields(execution, ExperimentState.PREPARING.value),
        **await execution.memo_value(SUMMARY_MEMO, {}),
    )
