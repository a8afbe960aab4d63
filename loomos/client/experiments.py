"""Experiments straight on Temporal. The gateway stands on this."""

from __future__ import annotations

from pydantic import ValidationError
from temporalio.client import Client, WorkflowExecution

from loomos.client.documents import DocumentWorkflows, read_memo, summary_fields
from loomos.client.experiment_models import ExperimentSummary
from loomos.client.runs import RunKind, known_facts, known_state
from loomos.errors import Conflict, NotFound
from loomos.jobs.experiments import (
    ExperimentInput,
    ExperimentState,
    ExperimentStatus,
    StopRequest,
    TrialPage,
    TrialsQuery,
)
from loomos.jobs.names import EXPERIMENT_KIND, SUMMARY_MEMO
from loomos.manifest import Experiment
from loomos.storage import Store
from loomos.storage.layout import trials_prefix

EXPERIMENTS = RunKind(
    kind=EXPERIMENT_KIND, workflow="ExperimentSweep", noun="experiment", command="experiments"
)


class ExperimentClient:
    """Starts, finds and steers experiments."""

    def __init__(self, client: Client, store: Store) -> None:
        self._workflows = DocumentWorkflows(client, EXPERIMENTS, store)

    async def start(
        self, experiment: Experiment, owner: str, idempotency_key: str | None = None
    ) -> ExperimentStatus:
        """Start an experiment; the same key and document give the same one, once.

        Raises:
            NotFound: an experiment that it learns from is not known.
            Conflict: the key was used for another document.
        """
        for earlier in experiment.spec.warm_start:
            await self._workflows.described(earlier)
        metadata, spec = experiment.metadata, experiment.spec
        experiment_id, _ = await self._workflows.start(
            lambda run_id: ExperimentInput(
                experiment_id=run_id,
                name=metadata.name,
                owner=owner,
                project=metadata.project,
                spec=spec,
            ),
            experiment,
            metadata,
            owner=owner,
            key=idempotency_key,
            state=ExperimentState.PREPARING.value,
            priority=spec.priority,
            summary=f"{spec.sampler.name} search for {owner}",
        )
        return await self.get(experiment_id)

    async def get(self, experiment_id: str) -> ExperimentStatus:
        """An experiment; as Temporal knows it where its workflow cannot say.

        Raises:
            NotFound: there is none.
        """
        seen = await self._workflows.look(
            experiment_id, ExperimentStatus, is_final=lambda status: status.state.is_final
        )
        state = known_state(seen.execution, ExperimentState, ExperimentState.PREPARING)
        if seen.answer is not None:
            if seen.ended and not seen.answer.state.is_final:
                return seen.answer.model_copy(
                    update={
                        "state": state,
                        "message": "ended from outside",
                        "finished_at": seen.execution.close_time,
                    }
                )
            return seen.answer
        given = await self._workflows.first_input(experiment_id, ExperimentInput)
        return ExperimentStatus(
            experiment_id=experiment_id,
            **known_facts(seen.execution),
            state=state,
            message=seen.reason,
            spec=given.spec if given else None,
            started_at=seen.execution.start_time,
            finished_at=seen.execution.close_time,
            partial=seen.reason,
        )

    async def trials(self, experiment_id: str, query: TrialsQuery) -> TrialPage:
        """Trials that have finished, in that order.

        Raises:
            NotFound: there is no such experiment.
        """
        seen = await self._workflows.look(experiment_id, TrialPage, query, query="trials")
        if seen.answer is not None:
            is_over = seen.answer.is_over or bool(seen.ended and not seen.answer.trials)
            return seen.answer.model_copy(update={"is_over": is_over})
        return TrialPage(trials=[], next=query.since, is_over=bool(seen.ended), partial=seen.reason)

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
        try:
            return await self._workflows.update(
                experiment_id, "stop", request, result=ExperimentStatus
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
        await self._workflows.end(experiment_id)
        return await self.get(experiment_id)

    async def delete(self, experiment_id: str) -> None:
        """Delete an experiment that has ended, with its trials; models stay.

        Raises:
            NotFound: there is none.
            Conflict: it runs.
        """
        await self._workflows.delete(experiment_id, [trials_prefix(experiment_id)])


async def _summary(execution: WorkflowExecution) -> ExperimentSummary:
    facts = {
        "experiment_id": execution.id,
        **summary_fields(execution),
        "state": known_state(execution, ExperimentState, ExperimentState.PREPARING),
    }
    try:
        return ExperimentSummary(**facts, **await read_memo(execution, SUMMARY_MEMO))
    except ValidationError:  # noted by another LoomOS
        return ExperimentSummary(**facts)
