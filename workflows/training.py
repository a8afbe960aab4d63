"""A training job, from submission to a published model.

    resolve -> ( lease -> attempt -> [recover | pause | migrate] )* -> publish

An attempt is one gang of ranks under one lease and one generation. Whatever ends it early, the
next one resumes from the newest committed checkpoint. The workflow holds no training state but
counters, so any worker can replay it at any time.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from loomos.errors import Unavailable
    from loomos.jobs.admission import AdmissionOpen, LeaseDeferred
    from loomos.jobs.cluster import Lease, LeaseRequest, LeaseRevoked
    from loomos.jobs.facts import AttestModel
    from loomos.jobs.names import label_list
    from loomos.jobs.states import JobState
    from loomos.jobs.training import (
        AttemptPlan,
        CarriedState,
        JobEnded,
        JobResult,
        JobStatus,
        JobUpdate,
        MigrateRequest,
        ModelVersion,
        OpenAttempt,
        Progress,
        PublishRequest,
        TrainAssignment,
        TrainingRunInput,
        TrainOutcome,
    )
    from loomos.limits import backoff
    from loomos.nexus.requests import (
        step_seconds,
        training_request,
        why_not_on,
        workload,
    )
    from loomos.quantities import format_duration
    from loomos.search_attributes import LABELS, MODEL, PRIORITY
    from workflows import calls
    from workflows.causes import root_cause
    from workflows.delivery import Delivered, deliver
    from workflows.dependencies import Dependencies
    from workflows.facts import FactBook
    from workflows.gang import GangCancelled, GangEnd, GangFailed, run_gang
    from workflows.journal import Journal
    from workflows.leasing import Leasing


PROBED = (
    "was a probe: took no nodes and trained nothing; to train, name spec.model or spec.environment"
)
LONGEST_BACKOFF = timedelta(minutes=1)
SAME_ERROR = "same-error-twice"
"""Patch since which an exception that comes again at the same step ends the job."""
WAITS_HAND_OVER = "waits-hand-over"
"""Patch since which a job that is paused or waits for nodes goes on in a new run, if it is long."""
OUTAGES_COST_NOTHING = "outages-cost-nothing"
"""Patch since which an attempt that ends because the store is away counts for nothing."""
_DELIVERING = (JobState.PUBLISHING, JobState.VERIFYING, JobState.ROLLING_OUT)


@workflow.defn(name="TrainingRun")
class TrainingRun:
    """One job."""

    @workflow.init
    def __init__(self, job: TrainingRunInput) -> None:
        carried = job.carried or CarriedState()
        self._job = job
        self._inputs = carried.inputs
        self._journal = Journal(carried, self._rows)
        self._facts = FactBook(job)
        self._failures = carried.failures
        self._best_step = carried.best_step
        self._priority = carried.priority or job.spec.priority
        self._submitted_at = carried.submitted_at or workflow.info().start_time
        self._paused = carried.paused
        self._ran_for = carried.ran_for
        self._labels = job.labels
        self._leasing = Leasing(job.job_id, self._want, self._say_waits)
        self._dependencies = Dependencies(job.job_id, job.spec.depends_on, list(carried.dependents))
        self._stop_wish = ""
        self._migrate_to = list(carried.migrate_to)
        self._last_error = carried.last_error
        self._model: ModelVersion | None = None
        self._is_signed = False
        self._outcome: TrainOutcome | None = None
        self._attempts_opened = 0
        self._generation = 0

    @workflow.run
    async def run(self, job: TrainingRunInput) -> JobResult:
        """Carry the job through its life."""
        try:
            await self._await_dependencies()
            if job.spec.algorithm == "noop":
                return await self._noop()
            await self._resolve()
            while self._model is None and not self._is_pruned:
                await self._until_resumed()
                await self._continue_as_new_if_long()
                await self._recover_from(await self._run_once())
            return await self._complete()
        except BaseException as error:
            await self._end_badly(error)
            raise

    # --- phases ---

    async def _await_dependencies(self) -> None:
        """Wait for the jobs that this one depends on, once in its life."""
        if self._inputs is None and self._dependencies.pending:
            waits_for = ", ".join(self._dependencies.pending)
            self._journal.enter(JobState.QUEUED, f"waits for {waits_for}")
            await self._dependencies.wait()

    @property
    def _is_pruned(self) -> bool:
        """Whether it is a trial that was given up; it publishes nothing."""
        return self._outcome is not None and self._outcome.reason == "pruned"

    async def _complete(self) -> JobResult:
        """Sign and deliver what was published, and tell who waits."""
        delivered, said = Delivered(), "pruned"
        if self._model is None:
            await self._facts.settle()
        else:
            await self._attest(self._model)
            delivered = await deliver(self._job, self._model, self._journal)
            said = f"published {self._model.name}@{self._model.version}{delivered.said}"
        self._journal.enter(JobState.COMPLETED, said)
        await self._dependencies.tell(JobState.COMPLETED)
        return JobResult(
            state=self._journal.state,
            step=self._outcome.step if self._outcome else 0,
            model=self._model,
            verdict=delivered.verdict,
            rollout=delivered.rollout,
            outcome=self._outcome if self._job.most_reports else None,
            episode_return=self._outcome.episode_return if self._outcome else None,
        )

    async def _noop(self) -> JobResult:
        self._journal.enter(JobState.RUNNING, "a probe: takes no nodes")
        await calls.noop()
        self._journal.enter(JobState.COMPLETED, PROBED)
        await self._dependencies.tell(JobState.COMPLETED)
        return JobResult(state=self._journal.state)

    async def _resolve(self) -> None:
        """Pin inputs to digests, once in the job's life."""
        if self._inputs is None:
            self._facts.submitted()
            self._journal.enter(JobState.QUEUED, "pinning model and data")
            self._inputs = await calls.resolve_inputs(self._job.spec)
            self._facts.resolved(self._inputs)

    async def _until_resumed(self) -> None:
        if self._paused:
            self._journal.enter(JobState.PAUSED, "paused; `loomos jobs resume` goes on")
            leaves = workflow.patched(WAITS_HAND_OVER)
            await workflow.wait_condition(lambda: not self._paused or (leaves and _is_long()))

    async def _run_once(self) -> GangEnd | GangFailed:
        """Get nodes, train on them, publish if done; the nodes are given back whatever happens."""
        lease = await self._acquire()
        if lease is None:
            return GangEnd(wish="pause")
        began = workflow.now()
        try:
            if self._outcome is None:
                end = await self._attempt(lease)
                if isinstance(end, GangFailed) or end.outcome is None or end.wish:
                    return end
                self._outcome = end.outcome
            if self._is_pruned:
                return GangEnd(outcome=self._outcome)
            return await self._publish(lease)
        finally:
            self._ran_for += workflow.now() - began
            await self._leasing.release(*self._speed(lease))

    def _speed(self, lease: Lease) -> tuple[str, float | None]:
        """What ran, and how long a step took, so that the cluster learns how fast nodes are."""
        assert self._inputs is not None
        world_size = len(lease.nodes) * lease.ranks_per_node
        step_s = step_seconds(self._job, self._journal.progress)
        return workload(self._job, self._inputs, world_size), step_s

    async def _acquire(self) -> Lease | None:
        """Wait for a gang of nodes; None if paused meanwhile, or if the run should hand over."""
        self._stop_wish = ""
        state = JobState.RECOVERING if self._failures else JobState.QUEUED
        self._journal.enter(state, "waits for nodes")
        leaves = workflow.patched(WAITS_HAND_OVER)
        lease = await self._leasing.acquire(until=lambda: self._paused or (leaves and _is_long()))
        self._migrate_to = []
        return lease

    def _say_waits(self, why: str) -> None:
        """The cluster has no room even for the request, or has again."""
        self._journal.enter(self._journal.state, why)

    def _want(self) -> LeaseRequest:
        """What the job needs of the cluster now."""
        return training_request(self._job, self._submitted_at, self._inputs).model_copy(
            update={
                "priority": self._priority,
                "node_ids": self._migrate_to,
                "is_recovery": self._failures > 0,
            }
        )

    async def _attempt(self, lease: Lease) -> GangEnd | GangFailed:
        """One gang, from its first rank to its last."""
        nodes = ", ".join(node.node_id for node in lease.nodes)
        self._journal.enter(JobState.STARTING, f"starts on {nodes}")
        plan = await self._open_attempt()
        self._generation = plan.generation
        first = self._journal.open_attempt(plan, lease)
        self._facts.leased(lease, plan.generation, first)
        self._note_checkpoint(first)
        assert self._inputs is not None
        handles = [
            calls.start_train(
                TrainAssignment(
                    job_id=self._job.job_id,
                    generation=plan.generation,
                    lease_epoch=lease.epoch,
                    node_rank=rank,
                    nodes=lease.nodes,
                    ranks_per_node=lease.ranks_per_node,
                    spec=self._job.spec,
                    inputs=self._inputs,
                    devices=lease.devices[rank] if lease.devices else [],
                    most_reports=self._job.most_reports,
                    pruning=self._job.pruning,
                ),
                f"{node.node_id}, attempt {plan.generation}, from step {first}",
                priority=self._priority,
            )
            for rank, node in enumerate(lease.nodes)
        ]
        try:
            end = await run_gang(lease, handles, self._why_stop, self._time_left())
        except GangCancelled as cancelled:
            self._learn(cancelled.end)
            self._journal.close_attempt(cancelled.end)
            raise
        self._journal.close_attempt(end)
        self._facts.checkpoints()
        return end

    async def _open_attempt(self) -> AttemptPlan:
        self._attempts_opened += 1
        info = workflow.info()
        return await calls.open_attempt(
            OpenAttempt(
                job_id=self._job.job_id,
                claim=f"{info.run_id}/{self._attempts_opened}",
                from_scratch=self._job.from_scratch
                and self._attempts_opened == 1
                and self._job.carried is None,
            )
        )

    def _why_stop(self) -> tuple[str, LeaseRevoked | None]:
        """What the gang's supervisor asks after every event: a wish to stop, a lost lease."""
        if _is_long() and not self._stop_wish:
            self._stop_wish = "history"
        return self._stop_wish, self._leasing.revoked

    def _time_left(self) -> timedelta | None:
        longest = self._job.spec.runtime.max_duration
        return None if longest is None else max(timedelta(0), longest - self._ran_for)

    async def _publish(self, lease: Lease) -> GangEnd | GangFailed:
        outcome = self._outcome
        assert outcome is not None and outcome.checkpoint is not None and self._inputs is not None
        self._journal.enter(
            JobState.PUBLISHING, f"writes the model of step {outcome.checkpoint.step}"
        )
        handle = calls.start_publish(
            PublishRequest(
                job_id=self._job.job_id,
                name=self._job.spec.model_name(self._job.name),
                generation=outcome.checkpoint.generation,
                step=outcome.checkpoint.step,
                spec=self._job.spec,
                inputs=self._inputs,
                outcome=outcome,
            ),
            lease.nodes[0],
        )
        # Asked to pause or move now, a job would rather finish; only a lost node stops it.
        end = await run_gang(lease, [handle], lambda: ("", self._leasing.revoked), None)
        if isinstance(end, GangEnd) and end.version is not None:
            self._model = end.version
            workflow.upsert_search_attributes(
                [MODEL.value_set(f"{end.version.name}@{end.version.version}")]
            )
        return end

    async def _attest(self, model: ModelVersion) -> None:
        """Let the ledger know everything, then sign what the model was made of."""
        await self._facts.settle()
        await calls.attest_model(AttestModel(job_id=self._job.job_id, model=model))
        self._is_signed = True

    async def _recover_from(self, end: GangEnd | GangFailed) -> None:
        """Decide what follows an attempt: nothing, another one, or failure."""
        self._learn(end)
        if isinstance(end, GangEnd):
            if end.wish == "duration":
                longest = self._job.spec.runtime.max_duration
                raise ApplicationError(
                    f"ran for runtime.max_duration ({format_duration(longest or timedelta())}); "
                    f"`loomos jobs restart` goes on from step {self._best_step}",
                    type="DurationExceeded",
                    non_retryable=True,
                )
            return
        if end.fatal is not None:
            raise end.fatal
        self._refuse_same_error(end)
        retries = self._job.spec.runtime.retries
        if end.kind == Unavailable.__name__ and workflow.patched(OUTAGES_COST_NOTHING):
            # The store is away, which says nothing of the job: it goes on when that is back.
            self._journal.enter(JobState.RECOVERING, end.reason)
            self._facts.recovered(end.reason, self._generation)
            await workflow.sleep(backoff(retries.backoff, 0, LONGEST_BACKOFF))
            return
        self._failures += 1
        if self._failures >= retries.max_attempts:
            raise ApplicationError(
                f"{self._failures} attempts in a row failed without a new checkpoint; the last: "
                f"{end.reason}",
                type="AttemptsExhausted",
                non_retryable=True,
            )
        self._journal.enter(JobState.RECOVERING, end.reason)
        self._facts.recovered(end.reason, self._generation)
        if self._failures > 1:
            wait = backoff(retries.backoff, self._failures - 2, LONGEST_BACKOFF)
            await workflow.sleep(wait)

    def _refuse_same_error(self, end: GangFailed) -> None:
        """An exception of the program that comes again at the same step comes for ever."""
        before, self._last_error = self._last_error, end.signature
        if end.signature and before == end.signature and workflow.patched(SAME_ERROR):
            raise ApplicationError(
                f"the same error twice at step {end.step or 0}, so a further attempt would only "
                f"meet it again: {end.reason}",
                type=end.kind or "SameError",
                non_retryable=True,
            )

    def _learn(self, end: GangEnd | GangFailed) -> None:
        """A new checkpoint since the last failure clears the count of failures."""
        if isinstance(end, GangEnd) and end.outcome is not None and end.outcome.checkpoint:
            self._note_checkpoint(end.outcome.checkpoint.step)

    def _note_checkpoint(self, step: int | None) -> None:
        if step is not None and step > self._best_step:
            self._best_step, self._failures = step, 0

    def _rows(self) -> list[tuple[str, str]]:
        """Rows of the table in Temporal's UI that only the workflow knows."""
        lease = self._leasing.lease
        nodes = ", ".join(node.node_id for node in lease.nodes) if lease else "none"
        return [("nodes", nodes), ("priority", str(self._priority))]

    # --- messages ---

    @workflow.signal
    async def lease_granted(self, lease: Lease) -> None:
        """The cluster gives nodes."""
        await self._leasing.granted(lease)

    @workflow.signal
    def lease_revoked(self, message: LeaseRevoked) -> None:
        """The cluster takes nodes back."""
        self._leasing.take_back(message)

    @workflow.signal
    def lease_deferred(self, message: LeaseDeferred) -> None:
        """The cluster's queue is full; the job waits for admission."""
        self._leasing.deferred(message)

    @workflow.signal
    def admission_open(self, message: AdmissionOpen) -> None:
        """The cluster's queue has room now."""
        self._leasing.called()

    @workflow.signal
    def add_dependent(self, job_id: str) -> None:
        """A job wants to be told of this one's end."""
        self._dependencies.add(job_id)

    @workflow.signal
    def dependency_ended(self, ended: JobEnded) -> None:
        """A job that this one depends on tells of its end."""
        self._dependencies.hear(ended)

    @workflow.signal
    def progress(self, progress: Progress) -> None:
        """The gang tells how far it is; at most once a minute."""
        if self._journal.hear(progress):
            self._note_checkpoint(progress.checkpoint_step)
            if progress.checkpoint_step is not None:
                self._facts.checkpoints()

    @workflow.update
    def pause(self) -> JobStatus:
        """Checkpoint, give the nodes back, and wait."""
        self._paused = True
        self._stop_wish = "pause"
        return self.status()

    @workflow.update
    def resume(self) -> JobStatus:
        """End a pause."""
        self._paused = False
        if self._stop_wish == "pause":
            self._stop_wish = "restart"
        return self.status()

    @workflow.update
    def restart(self) -> JobStatus:
        """Checkpoint, and start a new attempt."""
        self._stop_wish = "restart"
        return self.status()

    @workflow.update
    async def migrate(self, request: MigrateRequest) -> JobStatus:
        """Checkpoint, and go on with these nodes."""
        self._migrate_to = request.node_ids
        self._stop_wish = "migrate"
        await self._leasing.ask_again()
        return self.status()

    @workflow.update
    async def change(self, update: JobUpdate) -> JobStatus:
        """Change labels or priority."""
        if update.labels is not None:
            self._labels = update.labels
            workflow.upsert_search_attributes([LABELS.value_set(label_list(update.labels))])
        if update.priority is not None:
            self._priority = update.priority
            workflow.upsert_search_attributes([PRIORITY.value_set(update.priority)])
            await self._leasing.ask_again()
        return self.status()

    @pause.validator
    def _can_pause(self) -> None:
        self._refuse_when_final("paused")
        self._refuse_when_delivering("pause")
        if self._paused:
            raise ApplicationError("already paused", type="Conflict", non_retryable=True)

    @resume.validator
    def _can_resume(self) -> None:
        self._refuse_when_final("resumed")
        if not self._paused:
            raise ApplicationError("not paused", type="Conflict", non_retryable=True)

    @restart.validator
    def _can_restart(self) -> None:
        self._refuse_when_final("restarted")
        self._refuse_when_delivering("restart")
        if self._leasing.lease is None:
            raise ApplicationError(
                "has no nodes now, so there is nothing to restart",
                type="Conflict",
                non_retryable=True,
            )

    @migrate.validator
    def _can_migrate(self, request: MigrateRequest) -> None:
        self._refuse_when_final("migrated")
        self._refuse_when_delivering("migrate")
        reason = why_not_on(self._want(), request.node_ids)
        if reason:
            raise ApplicationError(reason, type="InvalidInput", non_retryable=True)

    def _refuse_when_delivering(self, wish: str) -> None:
        """The training is over by then: there is nothing to stop that could go on later."""
        if self._journal.state in _DELIVERING:
            raise ApplicationError(
                f"is {self._journal.state}: its training is done, so there is nothing to {wish}; "
                "let it end, or cancel it",
                type="Conflict",
                non_retryable=True,
            )

    def _refuse_when_final(self, verb: str) -> None:
        if self._journal.state.is_final or self._job.spec.algorithm == "noop":
            raise ApplicationError(
                f"is {self._journal.state} and cannot be {verb}",
                type="Conflict",
                non_retryable=True,
            )

    @workflow.query
    def status(self) -> JobStatus:
        """Where the job is."""
        return JobStatus(
            state=self._journal.state,
            message=self._journal.message,
            priority=self._priority,
            progress=self._journal.progress,
            timeline=self._journal.timeline,
            attempts=self._journal.attempts,
            model=self._model if self._is_signed else None,
            asked=self._asked(),
        )

    def _asked(self) -> str:
        """What was asked of the job and is not done yet."""
        state = self._journal.state
        if state.is_final:
            return ""
        if self._paused:
            return "" if state == JobState.PAUSED else "pause"
        return self._stop_wish if self._stop_wish in ("restart", "migrate") else ""

    async def _end_badly(self, error: BaseException) -> None:
        """Let the ledger know, then say how it ended."""
        if is_cancelled_exception(error):
            state, message = JobState.CANCELLED, "cancelled"
        elif isinstance(error, ActivityError) and error.cause is not None:
            state, message = JobState.FAILED, str(error.cause)
        elif isinstance(error, ApplicationError):
            state, message = JobState.FAILED, str(error)
        else:
            return
        if self._job.spec.algorithm != "noop":
            if self._generation:
                self._facts.checkpoints()
            self._facts.ended(state, message)
            try:
                await self._facts.settle()
            except ActivityError as unrecorded:
                if not workflow.patched("ends-unrecorded"):
                    raise
                message += f" (the ledger lacks something of it: {root_cause(unrecorded)})"
        if self._model is not None and not self._is_signed and workflow.patched("unsigned"):
            # What is not signed does not exist, so the job has no model.
            workflow.upsert_search_attributes([MODEL.value_unset()])
        self._journal.enter(state, message)
        await self._dependencies.tell(state)

    async def _continue_as_new_if_long(self) -> None:
        if not _is_long():
            return
        await workflow.wait_condition(workflow.all_handlers_finished)
        await self._facts.settle()
        workflow.continue_as_new(
            self._job.model_copy(
                update={
                    "labels": self._labels,
                    "carried": CarriedState(
                        inputs=self._inputs,
                        timeline=self._journal.timeline,
                        attempts=self._journal.attempts,
                        progress=self._journal.progress,
                        failures=self._failures,
                        best_step=self._best_step,
                        priority=self._priority,
                        submitted_at=self._submitted_at,
                        paused=self._paused,
                        ran_for=self._ran_for,
                        dependents=self._dependencies.dependents,
                        migrate_to=self._migrate_to,
                        last_error=self._last_error,
                    ),
                }
            )
        )


def _is_long() -> bool:
    """Whether this run should hand over to a new one."""
    return workflow.info().is_continue_as_new_suggested()
