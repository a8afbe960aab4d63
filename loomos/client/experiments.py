"""Experiments straight on Temporal. The gateway stands on this."""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta

from pydantic import ValidationError
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import (
    Priority,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from loomos.client.answers import answered
from loomos.client.experiment_models import ExperimentSummary
from loomos.errors import Conflict, NotFound, Unavailable
from loomos.jobs.experiments import (
    ExperimentInput,
    ExperimentState,
    ExperimentStatus,
    StopRequest,
    TrialPage,
    TrialsQuery,
)
from loomos.jobs.names import (
    CONTROL_QUEUE,
    EXPERIMENT_KIND,
    SUMMARY_MEMO,
    experiment_workflow_id,
    label_list,
)
from loomos.manifest import Experiment
from loomos.search_attributes import KIND, LABELS, NAME, OWNER, PRIORITY, PROJECT, STATE

_ENDS = {
    WorkflowExecutionStatus.COMPLETED: ExperimentState.COMPLETED,
    WorkflowExecutionStatus.CANCELED: ExperimentState.CANCELLED,
    WorkflowExecutionStatus.FAILED: ExperimentState.FAILED,
    WorkflowExecutionStatus.TERMINATED: ExperimentState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: ExperimentState.FAILED,
}
_UNANSWERED = (NotFound, WorkflowQueryFailedError, WorkflowQueryRejectedError, ValidationError)
"""What comes instead of an answer; the last is the answer of another kind of workflow."""
DOCUMENT_MEMO = "document_sha256"


class ExperimentClient:
    """Starts, finds and steers experiments."""

    def __init__(self, client: Client) -> None:
        self._client = client

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
        digest = hashlib.sha256(experiment.model_dump_json().encode()).hexdigest()
        metadata = experiment.metadata
        key = idempotency_key or uuid.uuid4().hex
        run = ExperimentInput(
            experiment_id=experiment_workflow_id(metadata.name, key),
            name=metadata.name,
            owner=owner,
            project=metadata.project,
            spec=experiment.spec,
        )
        try:
            await answered(
                self._client.start_workflow(
                    "ExperimentSweep",
                    run,
                    id=run.experiment_id,
                    task_queue=CONTROL_QUEUE,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                    task_timeout=timedelta(seconds=10),
                    memo={DOCUMENT_MEMO: digest},
                    priority=Priority(
                        priority_key=experiment.spec.priority, fairness_key=metadata.project
                    ),
                    static_summary=f"{experiment.spec.sampler.name} search for {owner}",
                    search_attributes=TypedSearchAttributes(
                        [
                            SearchAttributePair(KIND, EXPERIMENT_KIND),
                            SearchAttributePair(NAME, metadata.name),
                            SearchAttributePair(OWNER, owner),
                            SearchAttributePair(PROJECT, metadata.project),
                            SearchAttributePair(STATE, ExperimentState.PREPARING.value),
                            SearchAttributePair(PRIORITY, experiment.spec.priority),
                            SearchAttributePair(LABELS, label_list(metadata.labels)),
                        ]
                    ),
                )
            )
        except WorkflowAlreadyStartedError:
            described = await answered(self._handle(run.experiment_id).describe())
            if await described.memo_value(DOCUMENT_MEMO, None) != digest:
                raise Conflict(
                    f"idempotency key {idempotency_key!r} was used for another experiment "
                    f"({run.experiment_id}); use a new key"
                ) from None
        return await self.get(run.experiment_id)

    async def get(self, experiment_id: str) -> ExperimentStatus:
        """An experiment.

        Raises:
            NotFound: there is none.
        """
        handle = self._handle(experiment_id)
        try:
            return await answered(handle.query("status", result_type=ExperimentStatus))
        except _UNANSWERED as error:
            raise await self._unanswered(experiment_id, error) from None

    async def trials(self, experiment_id: str, query: TrialsQuery) -> TrialPage:
        """Trials that have finished, in that order.

        Raises:
            NotFound: there is no such experiment.
        """
        handle = self._handle(experiment_id)
        try:
            return await answered(handle.query("trials", query, result_type=TrialPage))
        except _UNANSWERED as error:
            raise await self._unanswered(experiment_id, error) from None

    async def newest(self, limit: int) -> list[ExperimentSummary]:
        """The newest experiments, newest first, by one visibility call."""
        query = f'{KIND.name} = "{EXPERIMENT_KIND}" AND ExecutionStatus != "ContinuedAsNew"'
        found: dict[str, ExperimentSummary] = {}
        async for execution in self._client.list_workflows(query, limit=limit):
            if execution.id not in found:
                found[execution.id] = await _summary(execution)
        return list(found.values())

    async def stop(self, experiment_id: str, request: StopRequest) -> ExperimentStatus:
        """Start no more trials; those that run end, and the experiment is complete.

        Raises:
            NotFound: there is no such experiment.
            Conflict: it has ended, or stops already.
        """
        before = await self.get(experiment_id)
        handle = self._handle(experiment_id)
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
        await answered(self._handle(experiment_id).cancel())
        return await self.get(experiment_id)

    def _handle(self, experiment_id: str) -> WorkflowHandle[object, object]:
        return self._client.get_workflow_handle(experiment_id)

    async def _unanswered(self, experiment_id: str, error: Exception) -> Exception:
        """What to say when the workflow's own answer did not come."""
        missing = NotFound(f"no experiment {experiment_id!r}; `loomos experiments list` shows them")
        if isinstance(error, NotFound):
            return missing
        described = await answered(self._handle(experiment_id).describe())
        if described.workflow_type != "ExperimentSweep":
            return missing
        if described.status == WorkflowExecutionStatus.TERMINATED:
            return Conflict(f"the experiment {experiment_id} was terminated in Temporal")
        return Unavailable(f"{experiment_id} does not answer: {error}")


async def _summary(execution: WorkflowExecution) -> ExperimentSummary:
    attributes = execution.typed_search_attributes
    state = ExperimentState(attributes.get(STATE) or ExperimentState.PREPARING)
    if execution.status in _ENDS:  # also where the workflow could not say so itself
        state = _ENDS[execution.status]
    return ExperimentSummary(
        experiment_id=execution.id,
        name=attributes.get(NAME) or execution.id,
        owner=attributes.get(OWNER) or "",
        state=state,
        started_at=execution.start_time,
        finished_at=execution.close_time,
        **await execution.memo_value(SUMMARY_MEMO, {}),
    )
