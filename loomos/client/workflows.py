"""Jobs and cluster straight on Temporal. The gateway stands on this; so may a trusted program.

Temporal's visibility is the list of jobs and its histories are their truth: there is no other
table. A list is one visibility call.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from pydantic import ValidationError
from temporalio.api.common.v1 import Priority as PriorityProto
from temporalio.api.common.v1 import WorkflowExecution as ExecutionId
from temporalio.api.workflow.v1 import WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    UpdateWorkflowExecutionOptionsRequest,
)
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
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
from loomos.client.cluster import ClusterClient
from loomos.client.models import (
    JobDetail,
    JobPage,
    JobSummary,
    Submitted,
)
from loomos.errors import Conflict, InvalidInput, LoomOSError, NotFound, Unavailable
from loomos.jobs.cluster import QueuedRequest
from loomos.jobs.facts import submitted_facts
from loomos.jobs.names import CONTROL_QUEUE, JOB_KIND, label_list
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
from loomos.manifest import TrainingJob
from loomos.nexus.requests import training_request, why_not_on
from loomos.search_attributes import (
    KIND,
    LABELS,
    MODEL,
    NAME,
    OWNER,
    PRIORITY,
    PROJECT,
    STATE,
    quoted,
)
from loomos.settings import TemporalSettings

MANIFEST_MEMO = "manifest_sha256"

_CLOSED_STATE = {
    WorkflowExecutionStatus.COMPLETED: JobState.COMPLETED,
    WorkflowExecutionStatus.CANCELED: JobState.CANCELLED,
    WorkflowExecutionStatus.FAILED: JobState.FAILED,
    WorkflowExecutionStatus.TERMINATED: JobState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: JobState.FAILED,
}

T = TypeVar("T")


class WorkflowClient:
    """Submits, finds and steers jobs."""

    def __init__(self, client: Client, settings: TemporalSettings) -> None:
        self._client, self._settings = client, settings
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
        document = job.model_dump_json()
        digest = hashlib.sha256(document.encode()).hexdigest()
        name = job.metadata.name
        seed = f"{owner}/{idempotency_key}" if idempotency_key else uuid.uuid4().hex
        job_id = f"{name}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"
        run = TrainingRunInput(
            job_id=job_id,
            name=name,
            owner=owner,
            project=job.metadata.project,
            labels=job.metadata.labels,
            spec=job.spec,
        )
        check_data(submitted_facts(run))
        # What was admitted once, and perhaps runs by now, is not judged again.
        if idempotency_key is None or not await self._exists(job_id):
            await self._admit(run)
        try:
            await self._start(run, digest, WorkflowIDReusePolicy.REJECT_DUPLICATE)
        except WorkflowAlreadyStartedError:
            description = await self._described(job_id)
            if await description.memo_value(MANIFEST_MEMO, None) != digest:
                raise Conflict(
                    f"idempotency key {idempotency_key!r} was used for another manifest (job "
                    f"{job_id}); use a new key"
                ) from None
            return Submitted(job_id=job_id, created=False, temporal_url=self.url(job_id))
        return Submitted(job_id=job_id, created=True, temporal_url=self.url(job_id))

    async def _exists(self, job_id: str) -> bool:
        try:
            await self._described(job_id)
        except NotFound:
            return False
        return True

    async def _admit(self, run: TrainingRunInput) -> None:
        """Refuse what is known to come to nothing."""
        for each in run.spec.depends_on:
            if not await self._exists(each.job):
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

    async def _start(
        self, run: TrainingRunInput, digest: str, reuse: WorkflowIDReusePolicy
    ) -> None:
        model = run.spec.model.base_model if run.spec.model else run.spec.algorithm
        await answered(
            self._client.start_workflow(
                "TrainingRun",
                run,
                id=run.job_id,
                task_queue=CONTROL_QUEUE,
                id_reuse_policy=reuse,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                task_timeout=timedelta(seconds=5),
                memo={MANIFEST_MEMO: digest},
                priority=Priority(priority_key=run.spec.priority, fairness_key=run.project),
                static_summary=f"{run.spec.algorithm} {model} for {run.owner}",
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(KIND, JOB_KIND),
                        SearchAttributePair(NAME, run.name),
                        SearchAttributePair(OWNER, run.owner),
                        SearchAttributePair(PROJECT, run.project),
                        SearchAttributePair(STATE, JobState.QUEUED.value),
                        SearchAttributePair(PRIORITY, run.spec.priority),
                        SearchAttributePair(LABELS, label_list(run.labels)),
                    ]
                ),
            )
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
        """One page of jobs, newest first, by one visibility call.

        Raises:
            InvalidInput: the cursor is not one that a page gave.
        """
        query = [f'{KIND.name} = "{JOB_KIND}"', 'ExecutionStatus != "ContinuedAsNew"']
        if states:
            query.append("(" + " OR ".join(_state_query(state) for state in states) + ")")
        for key, value in ((OWNER, owner), (PROJECT, project)):
            if value is not None:
                query.append(f"{key.name} = {quoted(value)}")
        query += [f"{LABELS.name} = {quoted(label)}" for label in label_list(labels or {})]
        pages = self._client.list_workflows(
            " AND ".join(query), page_size=limit, next_page_token=_decode_cursor(cursor)
        )
        await answered(pages.fetch_next_page())
        newest = {execution.id: execution for execution in reversed(pages.current_page or [])}
        return JobPage(
            jobs=[_summary(execution) for execution in reversed(newest.values())],
            next_cursor=_encode_cursor(pages.next_page_token) if pages.next_page_token else None,
        )

    async def describe_job(self, job_id: str) -> JobDetail:
        """Everything about a job.

        Raises:
            NotFound: there is no such job.
        """
        description = await self._described(job_id)
        run, status = await asyncio.gather(self._input(job_id), self._status(job_id))
        if status is not None and status.state.is_final:
            # It may have ended between the two questions; only Temporal knows when.
            description = await self._described(job_id)
        summary = _summary(description)
        heard = [await self._live_progress(description), status.progress if status else None]
        training = max(
            (progress for progress in heard if progress is not None),
            key=lambda progress: (progress.generation, progress.step),
            default=None,
        )
        if status is None:
            status = JobStatus(
                state=summary.state,
                message="no control worker answers; shown is what Temporal knows",
                priority=summary.priority,
            )
        elif not summary.state.is_final:
            summary = summary.model_copy(update={"state": status.state})
            doing = await self._doing(description)
            if doing:
                message = f"{status.message}: {doing}"
                status = status.model_copy(update={"message": message})
        percent = 0.0
        if summary.state == JobState.COMPLETED:
            percent = 100.0
        elif training and training.total_steps:
            percent = round(100 * training.step / training.total_steps, 2)
        return JobDetail(
            **summary.model_dump(exclude={"priority"}),
            priority=status.priority,
            message=status.message,
            progress=percent,
            current_stage=f"{summary.state}: {status.message}",
            training=training,
            attempts=[_settled(attempt, summary.state) for attempt in status.attempts],
            asked=_asked(description, status),
            timeline=status.timeline,
            published=status.model,
            queued=await self._queued(job_id, summary.state),
            spec=run.spec.model_dump(mode="json", exclude_none=True),
            temporal_url=self.url(job_id),
        )

    async def _queued(self, job_id: str, state: JobState) -> QueuedRequest | None:
        """Its place in the queue, if it is in it."""
        if state not in (JobState.QUEUED, JobState.RECOVERING):
            return None
        return await self.cluster.place_of(job_id)

    async def cancel_job(self, job_id: str) -> None:
        """Ask a job to stop; its ranks checkpoint and end. A finished job is a `Conflict`."""
        description = await self._described(job_id)
        if description.status != WorkflowExecutionStatus.RUNNING:
            raise Conflict(f"job {job_id} is {_summary(description).state}; nothing to cancel")
        await answered(self._handle(job_id).cancel())

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
        run = await self._input(job_id)
        request = training_request(run, datetime.now(UTC)).model_copy(update={"node_ids": node_ids})
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
        description = await self._described(job_id)
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
        description = await self._described(job_id)
        if description.status == WorkflowExecutionStatus.RUNNING:
            if from_scratch:
                raise Conflict(f"job {job_id} runs; cancel it before a restart from scratch")
            await self._update(job_id, "restart")
            return
        run = await self._input(job_id)
        again = run.model_copy(update={"from_scratch": from_scratch, "carried": None})
        digest = await description.memo_value(MANIFEST_MEMO, "")
        try:
            await self._start(again, digest, WorkflowIDReusePolicy.ALLOW_DUPLICATE)
        except WorkflowAlreadyStartedError:
            raise Conflict(f"job {job_id} has been restarted already") from None

    async def forget_job(self, job_id: str) -> None:
        """Delete the record of a job that has ended: every run that it had.

        Temporal deletes in the background; for a moment the job can still be seen.
        """
        description = await self._described(job_id)
        if description.status == WorkflowExecutionStatus.RUNNING:
            raise Conflict(f"job {job_id} runs; cancel it first")
        runs = {description.run_id}
        async for run in self._client.list_workflows(f"WorkflowId = {quoted(job_id)}"):
            runs.add(run.run_id)
        for run_id in sorted(runs):
            with contextlib.suppress(NotFound):
                await answered(
                    self._client.workflow_service.delete_workflow_execution(
                        DeleteWorkflowExecutionRequest(
                            namespace=self._client.namespace,
                            workflow_execution=ExecutionId(workflow_id=job_id, run_id=run_id),
                        )
                    )
                )

    def url(self, job_id: str) -> str:
        """The job's page in Temporal's UI."""
        namespace = self._settings.namespace
        return f"{self._settings.ui_url}/namespaces/{namespace}/workflows/{job_id}"

    # --- health ---

    async def check(self) -> None:
        """Raise `Unavailable` unless Temporal answers."""
        await answered(self._client.service_client.check_health())

    # --- inside ---

    def _handle(self, job_id: str) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(job_id)

    async def _described(self, job_id: str) -> WorkflowExecutionDescription:
        try:
            description = await answered(self._handle(job_id).describe())
        except NotFound:
            raise NotFound(f"no job {job_id!r}; `loomos jobs list` shows them") from None
        except InvalidInput:
            raise NotFound(f"no job {job_id!r}: ids are shorter") from None
        if description.workflow_type != "TrainingRun":
            raise NotFound(f"{job_id!r} is a workflow, but no job")
        return description

    async def _input(self, job_id: str) -> TrainingRunInput:
        async for event in self._handle(job_id).fetch_history_events(page_size=1):
            payloads = event.workflow_execution_started_event_attributes.input.payloads
            decoded = await self._client.data_converter.decode(list(payloads), [TrainingRunInput])
            found: TrainingRunInput = decoded[0]
            return found
        raise NotFound(f"no history of job {job_id!r}")

    async def _status(self, job_id: str) -> JobStatus | None:
        """The workflow's own answer; None when no worker can give it now."""
        try:
            return await answered(self._handle(job_id).query("status", result_type=JobStatus))
        except (Unavailable, WorkflowQueryFailedError, WorkflowQueryRejectedError):
            return None

    async def _live_progress(self, description: WorkflowExecutionDescription) -> Progress | None:
        """The furthest progress that running activities have heartbeat."""
        found: list[Progress] = []
        for pending in description.raw_description.pending_activities:
            if pending.activity_type.name == "train" and pending.heartbeat_details.payloads:
                details = await self._client.data_converter.decode(
                    list(pending.heartbeat_details.payloads)
                )
                try:
                    found.append(Progress.model_validate(details[0]))
                except ValidationError:
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

    async def _update(self, job_id: str, name: str, argument: Any = None) -> JobStatus:
        description = await self._described(job_id)
        if description.status != WorkflowExecutionStatus.RUNNING:
            raise Conflict(f"job {job_id} is {_summary(description).state}; it cannot {name}")
        arguments = [] if argument is None else [argument]
        try:
            return await answered(
                self._handle(job_id).execute_update(name, args=arguments, result_type=JobStatus)
            )
        except Conflict as error:
            raise Conflict(f"job {job_id}: {error}") from None


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


def _encode_cursor(token: bytes) -> str:
    """Temporal's page token with a checksum: a made-up one would crash its visibility store."""
    return base64.urlsafe_b64encode(hashlib.sha256(token).digest()[:8] + token).decode()


def _decode_cursor(cursor: str | None) -> bytes | None:
    if cursor is None:
        return None
    try:
        decoded = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        decoded = b""
    checksum, token = decoded[:8], decoded[8:]
    if not token or hashlib.sha256(token).digest()[:8] != checksum:
        raise InvalidInput("cursor: not one that a page gave")
    return token


def _summary(execution: WorkflowExecution) -> JobSummary:
    attributes = execution.typed_search_attributes
    state = _CLOSED_STATE.get(execution.status) if execution.status else None
    labels = attributes.get(LABELS) or []
    return JobSummary(
        job_id=execution.id,
        name=attributes.get(NAME) or execution.id,
        state=state or JobState(attributes.get(STATE) or JobState.QUEUED.value),
        owner=attributes.get(OWNER) or "",
        project=attributes.get(PROJECT) or "",
        labels=dict(label.split("=", 1) for label in labels),
        priority=attributes.get(PRIORITY) or 3,
        model=attributes.get(MODEL),
        created_at=execution.start_time,
        finished_at=execution.close_time,
    )
