"""A verification: plan, generate shard by shard on leased nodes, judge, record.

The plan is hashed and in the ledger before the first generation. Shards are filed by content, so a
lost node costs at most the shard it was at, and the same verification again costs nothing.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.admission import AdmissionOpen, LeaseDeferred
    from loomos.jobs.cluster import Lease, LeaseRequest, LeaseRevoked, NodeInfo
    from loomos.jobs.facts import Fact, RecordFacts
    from loomos.jobs.verification import (
        JudgeRequest,
        PlanRef,
        PlanRequest,
        Shard,
        ShardRequest,
        VerificationEvent,
        VerificationInput,
        VerificationResult,
        VerificationState,
        VerificationStatus,
    )
    from loomos.manifest import Resources
    from loomos.search_attributes import STATE
    from workflows import calls, delivery_calls
    from workflows.causes import root_cause
    from workflows.details import show_table
    from workflows.leasing import Leasing

MOST_FAILURES = 5
"""Failures in a row without one shard done, after which the verification fails."""
PRIORITY = 3


@workflow.defn(name="VerificationSuite")
class VerificationSuite:
    """One verification."""

    @workflow.init
    def __init__(self, job: VerificationInput) -> None:
        self._job = job
        self._state = VerificationState.PLANNING
        self._message = "pins model and suites"
        self._plan: PlanRef | None = None
        self._done = 0
        self._result: VerificationResult | None = None
        self._timeline: list[VerificationEvent] = []
        self._leasing = Leasing(workflow.info().workflow_id, self._want)

    @workflow.run
    async def run(self, job: VerificationInput) -> VerificationResult:
        """Carry the verification to its verdict."""
        try:
            await self._make_plan()
            await self._generate()
            return await self._judge()
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled_exception(error):
                self._enter(VerificationState.CANCELLED, "cancelled")
            else:
                self._enter(VerificationState.FAILED, root_cause(error))
            raise

    # --- phases ---

    async def _make_plan(self) -> None:
        self._enter(VerificationState.PLANNING, "pins model and suites")
        self._plan = await delivery_calls.plan_verification(
            PlanRequest(
                verification_id=self._job.verification_id,
                model=self._job.model,
                spec=self._job.spec,
            )
        )
        await self._record(
            "verification_planned",
            {
                "baseline": self._plan.baseline,
                "plan_sha256": self._plan.sha256,
                "prompts": self._plan.prompts,
                "version": self._plan.version,
            },
            self._job.owner,
        )

    async def _generate(self) -> None:
        """Have every shard's answers in the store."""
        assert self._plan is not None
        left = list(self._plan.shards)
        failures = 0
        while left:
            self._enter(VerificationState.QUEUED, "waits for nodes")
            lease = await self._leasing.acquire()
            assert lease is not None
            try:
                self._enter(VerificationState.RUNNING, f"asks on {lease.nodes[0].node_id}")
                before = len(left)
                failed = await self._work_off(left, lease.nodes[0])
            finally:
                await self._leasing.release()
            if failed is None:
                continue
            failures = 1 if len(left) < before else failures + 1
            if failures >= MOST_FAILURES:
                raise ApplicationError(
                    f"{failures} attempts in a row finished no shard; the last: "
                    f"{root_cause(failed)}",
                    type="AttemptsExhausted",
                    non_retryable=True,
                )
            await workflow.sleep(timedelta(seconds=failures))

    async def _work_off(self, left: list[Shard], node: NodeInfo) -> ActivityError | None:
        """Do shards on a node until none is left, or something is wrong with it."""
        assert self._plan is not None
        while left and self._leasing.revoked is None:
            shard = left[0]
            failed: ActivityError | None = None
            try:
                await delivery_calls.evaluate_shard(
                    ShardRequest(plan_sha256=self._plan.sha256, shard=shard), node
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                failed = error
            if failed is not None:
                # Raised here, not in the handler above: `error` is caused by its own cause, and
                # a circle of causes cannot be written into a failure.
                if isinstance(failed.cause, ApplicationError) and failed.cause.non_retryable:
                    raise failed.cause
                return failed
            left.pop(0)
            self._done += 1
            self._show()
        return None

    async def _judge(self) -> VerificationResult:
        assert self._plan is not None
        self._enter(VerificationState.JUDGING, "scores answers, writes reports")
        self._result = await delivery_calls.judge_verification(
            JudgeRequest(verification_id=self._job.verification_id, plan_sha256=self._plan.sha256)
        )
        await self._record(
            "model_verified",
            {
                "evidence_sha256": self._result.evidence_sha256,
                "plan_sha256": self._result.plan_sha256,
                "suites": {s.suite: s.verdict for s in self._result.suites},
                "verdict": self._result.verdict,
                "version": self._result.version,
            },
        )
        self._enter(VerificationState.COMPLETED, self._result.verdict)
        return self._result

    # --- bookkeeping ---

    def _want(self) -> LeaseRequest:
        info = workflow.info()
        return LeaseRequest(
            job_id=info.workflow_id,
            run_id=info.run_id,
            ticket=0,
            resources=Resources(nodes=1),
            submitted_at=info.start_time,
            priority=PRIORITY,
        )

    async def _record(
        self, event_type: str, data: dict[str, object], person: str | None = None
    ) -> None:
        """Let the ledger know, and wait: a plan counts only if it was known before."""
        name = (self._plan.version if self._plan else self._job.model).partition("@")[0]
        run = workflow.info().first_execution_run_id
        fact = Fact(event_type=event_type, key=f"{run}/{event_type}", data=data, person=person)
        await calls.start_record(
            RecordFacts(job_id=self._job.verification_id, stream=f"model:{name}", facts=[fact])
        )

    def _enter(self, state: VerificationState, message: str) -> None:
        changed = state != self._state or not self._timeline
        self._state, self._message = state, message
        self._timeline.append(
            VerificationEvent(
                sequence=len(self._timeline) + 1, at=workflow.now(), state=state, message=message
            )
        )
        if changed:
            workflow.upsert_search_attributes([STATE.value_set(state.value)])
        self._show()

    def _show(self) -> None:
        total = len(self._plan.shards) if self._plan else 0
        show_table(
            [
                ("state", f"**{self._state}**: {self._message}"),
                ("model", self._plan.version if self._plan else self._job.model),
                ("shards", f"{self._done} of {total}"),
            ]
        )

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
        """The cluster's queue is full; the verification waits for admission."""
        self._leasing.deferred(message)

    @workflow.signal
    def admission_open(self, message: AdmissionOpen) -> None:
        """The cluster's queue has room now."""
        self._leasing.called()

    @workflow.query
    def status(self) -> VerificationStatus:
        """Where it is."""
        return VerificationStatus(
            verification_id=self._job.verification_id,
            state=self._state,
            message=self._message,
            version=self._plan.version if self._plan else self._job.model,
            shards_done=self._done,
            shards=len(self._plan.shards) if self._plan else 0,
            result=self._result,
            timeline=self._timeline,
        )
