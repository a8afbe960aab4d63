"""Jobs and cluster straight on Temporal. The gateway stands on this; so may a trusted program.

Temporal's visibility is the list of jobs and its histories are their truth: there is no other
table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from temporalio.api.common.v1 import Priority as PriorityProto
from temporalio.api.common.v1 import WorkflowExecution as ExecutionId
from temporalio.api.workflow.v1 import WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import UpdateWorkflowExecutionOptionsRequest
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from loomos.client.answers import answered
from loomos.client.cluster import ClusterClient
from loomos.client.documents import DOCUMENT_MEMO, KEY_MEMO, DocumentWorkflows
from loomos.client.listing import decode_cursor, encode_cursor, newest_first
from loomos.client.models import JobDetail, JobPage, JobSummary, Submitted
from loomos.client.runs import RunKind, known_facts, known_state
from loomos.errors import Conflict, InvalidInput, LoomOSError, NotFound, Stuck, Unavailable
from loomos.jobs.facts import submitted_facts
from loomos.jobs.message import Message
from loomos.jobs.names import JOB_KIND, label_list
from loomos.jobs.states import JobState
from loomos.jobs.training import (
    AttemptSummary,
    JobStatus,
    JobUpdate,
    MigrateRequest,
    Progress,
    TrainingRunInput,
)
from loomos.loomdb.events import check_data
from loomos.manifest import TrainingJob, TrainingSpec
from loomos.nexus.requests import training_request, why_not_on
from loomos.search_attributes import LABELS, MODEL, OWNER, PRIORITY, PROJECT, STATE, quoted
from loomos.settings import TemporalSettings
from loomos.storage import Store
from loomos.storage.layout import job_prefix

TASK_TIMEOUT = timedelta(seconds=5)

JOBS = RunKind(kind=JOB_KIND, workflow="TrainingRun", noun="job", command="jobs")


class WorkflowClient:
    """Submits, finds and steers jobs.

    Args:
        client: Temporal.
        settings: where its UI is.
        store: where idempotency keys and what jobs have written are.
    """

    def __init__(self, client: Client, settings: TemporalSettings, store: Store) -> None:
        self._client, self._settings = client, settings
        self._jobs = DocumentWorkflows(client, JOBS, store)
        self.cluster = ClusterClient(client)

    # --- jobs ---

    async def submit(
        self, job: TrainingJob, owner: str, idempotency_key: str | None = None
    ) -> Submitted:
        """Start the workflow of a job.

        Args:
            job: a valid manifest.
            owner: who submits.
            idempotency_key: the same key and manifest give the same job, once.

        Raises:
            InvalidInput: it depends on a job that is not known.
            Conflict: the key was used for another manifest, or its deadline cannot be met.
        """
        metadata, spec = job.metadata, job.spec

        def make_run(job_id: str) -> TrainingRunInput:
            return TrainingRunInput(
                job_id=job_id,
                name=metadata.name,
                owner=owner,
                project=metadata.project,
                labels=metadata.labels,
                spec=spec,
            )

        job_id, created = await self._jobs.start(
            make_run,
            job,
            metadata,
            owner=owner,
            key=idempotency_key,
            state=JobState.QUEUED.value,
            priority=spec.priority,
            summary=_sentence(spec, owner),
            task_timeout=TASK_TIMEOUT,
            admit=self._admit,
        )
        return Submitted(job_id=job_id, created=created, temporal_url=self.url(job_id))

    async def _admit(self, run: TrainingRunInput) -> None:
        """Refuse what is known to come to nothing."""
        check_data(submitted_facts(run))
        for each in run.spec.depends_on:
            if not await self._jobs.exists(each.job):
                raise InvalidInput(
                    f"spec.depends_on: there is no job {each.job!r}; submit it first, give its id"
                )
        deadline = run.spec.runtime.deadline
        if deadline is None:
            return
        found = await self.cluster.forecast(training_request(run, datetime.now(UTC)))
        if found.is_unknown:
            return
        if found.ends_at is None:
            raise Conflict(
                f"spec.runtime.deadline: it cannot be met, for the job {found.reason}; leave the "
                "deadline out to wait all the same"
            )
        if found.ends_at > deadline:
            raise Conflict(
                f"spec.runtime.deadline: {deadline:%Y-%m-%dT%H:%M:%SZ} cannot be met: by estimates "
                f"the job would be done at {found.ends_at:%Y-%m-%dT%H:%M:%SZ}; ask for a "
                "later one, a higher priority or fewer nodes"
            )

    async def list_jobs(
        self,
        *,
        states: Sequence[JobState] = (),
        owner: str | None = None,
        project: str | None = None,
        labels: dict[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """One page of jobs, newest first, each once.

        Raises:
            InvalidInput: the cursor is not one that a page gave.
        """
        query = [f'WorkflowType = "{JOBS.workflow}"']
        if states:
            query.append("(" + " OR ".join(_state_query(state) for state in states) + ")")
        for key, value in ((OWNER, owner), (PROJECT, project)):
            if value is not None:
                query.append(f"{key.name} = {quoted(value)}")
        query += [f"{LABELS.name} = {quoted(label)}" for label in label_list(labels or {})]
        page = await newest_first(self._client, " AND ".join(query), limit, decode_cursor(cursor))
        return JobPage(
            jobs=[_summary(execution) for execution in page.executions],
            next_cursor=encode_cursor(page.next) if page.next else None,
        )

    async def describe_job(self, job_id: str) -> JobDetail:
        """Everything about a job; as Temporal knows it where its workflow cannot say.

        Raises:
            NotFound: there is no such job.
        """
        seen, run = await asyncio.gather(
            self._jobs.look(job_id, JobStatus, is_final=lambda status: status.state.is_final),
            self._jobs.first_input(job_id, TrainingRunInput),
        )
        summary, status, why = _summary(seen.execution), seen.answer, seen.reason
        heard = [await self._live_progress(seen.execution), status.progress if status else None]
        training = max(
            (progress for progress in heard if progress is not None),
            key=lambda progress: (progress.generation, progress.step),
            default=None,
        )
        if status is None:
            status = JobStatus(state=summary.state, message=why, priority=summary.priority)
        elif not summary.state.is_final:
            summary = summary.model_copy(update={"state": status.state})
            if doing := await self._doing(seen.execution):
                message = f"{status.message}: {doing}"
                status = status.model_copy(update={"message": message})
        percent = 0.0
        if summary.state == JobState.COMPLETED:
            percent = 100.0
        elif training and training.total_steps:
            percent = round(100 * training.step / training.total_steps, 2)
        queued = None
        if not why and summary.state in (JobState.QUEUED, JobState.RECOVERING):
            try:
                queued = await self.cluster.place_of(job_id)
            except (Unavailable, Stuck) as error:
                why = f"its place in the queue is not known: {error}"
        if run is not None:
            spec = run.spec.model_dump(mode="json", exclude_none=True)
        else:
            spec = await self._unread_spec(job_id)
            why = why or "what it was started with cannot be read"
        return JobDetail(
            **summary.model_dump(exclude={"priority"}),
            priority=status.priority,
            message=status.message,
            progress=percent,
            current_stage=f"{summary.state}: {status.message}",
            training=training,
            attempts=[_settled(attempt, summary.state) for attempt in status.attempts],
            asked=_asked(seen.execution, status),
            timeline=status.timeline,
            published=status.model,
            queued=queued,
            spec=spec,
            temporal_url=self.url(job_id),
            partial=why,
        )

    async def _unread_spec(self, job_id: str) -> dict[str, Any]:
        """The spec of a job as it was written, whatever that is."""
        spec = (await self._jobs.raw_input(job_id)).get("spec")
        return spec if isinstance(spec, dict) else {}

    async def cancel_job(self, job_id: str, person: str = "") -> None:
        """Ask a job to stop; its ranks checkpoint and end. A finished job is a `Conflict`.

        One that fails at every step, and so cannot stop by itself, is terminated.
        """
        description = await self._jobs.described(job_id)
        if description.status != WorkflowExecutionStatus.RUNNING:
            raise Conflict(f"job {job_id} is {_summary(description).state}; nothing to cancel")
        await self._jobs.end(job_id, person)

    async def pause_job(self, job_id: str) -> JobStatus:
        """Checkpoint a job and take its nodes away."""
        return await self._update(job_id, "pause")

    async def resume_job(self, job_id: str) -> JobStatus:
        """Let a paused job go on."""
        return await self._update(job_id, "resume")

    async def migrate_job(self, job_id: str, node_ids: list[str]) -> JobStatus:
        """Move a job to other nodes.

        Raises:
            NotFound: one of the nodes is unknown.
            Conflict: the job cannot run on these nodes, however long it waits.
        """
        known = {node.info.node_id for node in (await self.cluster.status()).nodes}
        for node_id in node_ids:
            if node_id not in known:
                raise NotFound(f"no node {node_id!r}; known: {', '.join(sorted(known)) or 'none'}")
        await self._jobs.described(job_id)
        run = await self._jobs.first_input(job_id, TrainingRunInput)
        if run is not None:
            request = training_request(run, datetime.now(UTC)).model_copy(
                update={"node_ids": node_ids}
            )
            reason = why_not_on(request, node_ids) or await self.cluster.why_never(request)
            if reason:
                raise Conflict(f"job {job_id} cannot run on {', '.join(node_ids)}: {reason}")
        return await self._update(job_id, "migrate", MigrateRequest(node_ids=node_ids))

    async def change_job(self, job_id: str, change: JobUpdate) -> JobStatus:
        """Change labels or priority of a job that lives; Temporal's own priority follows."""
        status = await self._update(job_id, "change", change)
        if change.priority is not None:
            with contextlib.suppress(LoomOSError):  # it only orders the workflow's own tasks
                await self._prioritise(job_id, change.priority)
        return status

    async def _prioritise(self, job_id: str, priority: int) -> None:
        description = await self._jobs.described(job_id)
        project = description.typed_search_attributes.get(PROJECT) or "default"
        await answered(
            self._client.workflow_service.update_workflow_execution_options(
                UpdateWorkflowExecutionOptionsRequest(
                    namespace=self._client.namespace,
                    workflow_execution=ExecutionId(workflow_id=job_id),
                    workflow_execution_options=WorkflowExecutionOptions(
                        priority=PriorityProto(priority_key=priority, fairness_key=project)
                    ),
                    update_mask=FieldMask(paths=["priority"]),
                )
            )
        )

    async def restart_job(self, job_id: str, *, from_scratch: bool = False) -> None:
        """Start a new attempt of a job that runs, or run a job again that has ended.

        A job that ended goes on from its newest checkpoint unless `from_scratch`.
        """
        description = await self._jobs.described(job_id)
        if description.status == WorkflowExecutionStatus.RUNNING:
            if from_scratch:
                raise Conflict(f"job {job_id} runs; cancel it before a restart from scratch")
            await self._update(job_id, "restart")
            return
        run = await self._jobs.first_input(job_id, TrainingRunInput)
        if run is None:
            raise Conflict(
                f"what job {job_id} was started with cannot be read, so it cannot be started "
                "again; submit its manifest anew"
            )
        again = run.model_copy(update={"from_scratch": from_scratch, "carried": None})
        memo = {
            name: await self._jobs.memo(description, name) for name in (DOCUMENT_MEMO, KEY_MEMO)
        }
        try:
            await self._jobs.start_run(
                job_id,
                again,
                again.name,
                again.project,
                again.labels,
                owner=again.owner,
                state=JobState.QUEUED.value,
                priority=again.spec.priority,
                summary=_sentence(again.spec, again.owner),
                memo=memo,
                task_timeout=TASK_TIMEOUT,
                reuse=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            )
        except WorkflowAlreadyStartedError:
            raise Conflict(f"job {job_id} has been restarted already") from None

    async def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended: checkpoints, logs and metrics, then its record.

        Interrupted, it is finished by another call. Its model stays.

        Raises:
            NotFound: there is no such job, nor anything left of one.
            Conflict: it runs.
        """
        await self._jobs.delete(job_id, [job_prefix(job_id)])

    def url(self, job_id: str) -> str:
        """The job's page in Temporal's UI."""
        namespace = self._settings.namespace
        return f"{self._settings.ui_url}/namespaces/{namespace}/workflows/{job_id}"

    # --- health ---

    async def check(self) -> None:
        """Raise `Unavailable` unless Temporal answers."""
        await answered(self._client.service_client.check_health())

    # --- inside ---

    async def _live_progress(self, description: WorkflowExecutionDescription) -> Progress | None:
        """The furthest progress that running activities have heartbeat."""
        found: list[Progress] = []
        for pending in description.raw_description.pending_activities:
            if pending.activity_type.name == "train" and pending.heartbeat_details.payloads:
                try:
                    details = await self._client.data_converter.decode(
                        list(pending.heartbeat_details.payloads)
                    )
                    found.append(Progress.model_validate(details[0]))
                except Exception:  # whatever a decoder makes of bytes from anywhere
                    continue
        return max(found, key=lambda p: (p.generation, p.step), default=None)

    async def _doing(self, description: WorkflowExecutionDescription) -> str:
        """What is done, or has gone wrong so far, before there are nodes and after training."""
        for pending in description.raw_description.pending_activities:
            if pending.activity_type.name not in ("resolve_inputs", "attest_model"):
                continue
            details = await self._client.data_converter.decode(
                list(pending.heartbeat_details.payloads)
            )
            said = [str(details[0])] if details and details[0] else []
            if pending.attempt > 1 and pending.last_failure.message:
                failed = pending.last_failure.message[:300]
                said.append(f"attempt {pending.attempt}, the last failed: {failed}")
            return "; ".join(said)
        return ""

    async def _update(self, job_id: str, name: str, *arguments: Message) -> JobStatus:
        description = await self._jobs.described(job_id)
        if description.status != WorkflowExecutionStatus.RUNNING:
            raise Conflict(f"job {job_id} is {_summary(description).state}; it cannot {name}")
        try:
            return await self._jobs.update(job_id, name, *arguments, result=JobStatus)
        except Stuck:
            raise
        except Conflict as error:
            raise Conflict(f"job {job_id}: {error}") from None


def _sentence(spec: TrainingSpec, owner: str) -> str:
    model = spec.model.base_model if spec.model else spec.algorithm
    return f"{spec.algorithm} {model} for {owner}"


def _settled(attempt: AttemptSummary, state: JobState) -> AttemptSummary:
    """An attempt of a job that has ended does not run, though nobody may have said so."""
    if state.is_final and attempt.outcome == "running":
        return attempt.model_copy(update={"outcome": f"ended with the job: {state}"})
    return attempt


def _asked(description: WorkflowExecutionDescription, status: JobStatus) -> str | None:
    """What was asked of a job that lives and is not done yet."""
    if description.status != WorkflowExecutionStatus.RUNNING:
        return None
    if description.raw_description.workflow_extended_info.cancel_requested:
        return "cancel"
    return status.asked or None


def _state_query(state: JobState) -> str:
    """Jobs that end by force never write their state, so closed ones are found by status."""
    if state == JobState.FAILED:
        return 'ExecutionStatus IN ("Failed", "TimedOut", "Terminated")'
    if state == JobState.COMPLETED:
        return 'ExecutionStatus = "Completed"'
    if state == JobState.CANCELLED:
        return 'ExecutionStatus = "Canceled"'
    return f'({STATE.name} = "{state}" AND ExecutionStatus = "Running")'


def _summary(execution: WorkflowExecution) -> JobSummary:
    attributes = execution.typed_search_attributes
    labels = attributes.get(LABELS) or []
    return JobSummary(
        job_id=execution.id,
        **known_facts(execution),
        state=known_state(execution, JobState, JobState.QUEUED),
        labels=dict(label.split("=", 1) for label in labels if "=" in label),
        priority=attributes.get(PRIORITY) or 3,
        model=attributes.get(MODEL),
        created_at=execution.start_time,
        finished_at=execution.close_time,
    )
