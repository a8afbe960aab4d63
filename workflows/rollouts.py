r"""A canary rollout: from a verified version to all traffic, or back.

    preflight -> stage* -> bake -> promoted
         \________\________\____-> rolled back

Every stage is one long activity that judges outcomes; its verdict is all that enters the history.
Whatever ends a rollout without a promotion takes the traffic away first: a verdict, an abort, a
cancellation, a failure.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import NamedTuple

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityHandle

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.facts import Fact, RecordFacts
    from loomos.jobs.rollouts import (
        Approval,
        CanaryClosed,
        CanaryOpened,
        CloseCanary,
        OpenCanary,
        Reason,
        RolloutEvent,
        RolloutInput,
        RolloutState,
        RolloutStatus,
        SetTraffic,
        StageProgress,
        StageVerdict,
        WatchStage,
        begun,
        stage_key,
    )
    from loomos.jobs.serving import WHOLE
    from loomos.manifest import Stage
    from loomos.search_attributes import STATE
    from workflows import calls, delivery_calls
    from workflows.causes import root_cause
    from workflows.details import show_table

KEPT_EVENTS = 200


class _Ended(NamedTuple):
    """Why a rollout goes back."""

    reason: str
    by_verdict: StageVerdict | None = None


class _GoBack(Exception):
    """Raised by a phase to have the rollout rolled back."""

    def __init__(self, ended: _Ended) -> None:
        super().__init__(ended.reason)
        self.ended = ended


@workflow.defn(name="CanaryRollout")
class CanaryRollout:
    """One rollout; there is one at a time per endpoint, since the workflow's id is its name."""

    @workflow.init
    def __init__(self, rollout: RolloutInput) -> None:
        self._rollout, self._spec = rollout, rollout.spec
        self._state = RolloutState.PREFLIGHT
        self._stage, self._message = "preflight", "checks the candidate"
        self._opened: CanaryOpened | None = None
        self._share_bp = 0
        self._timeline: list[RolloutEvent] = []
        self._verdicts: list[StageVerdict] = []
        self._carried: StageProgress | None = None
        self._traffic_ms: float | None = None
        self._is_paused = False
        self._is_forced = False
        self._approved: set[str] = set()
        self._abort: str | None = None
        self._was_promoted = False
        self._opening_began = False
        self._facts = 0
        self._recording: list[ActivityHandle[object]] = []

    @workflow.run
    async def run(self, rollout: RolloutInput) -> RolloutStatus:
        """Carry the candidate through its stages."""
        try:
            await self._preflight()
            for stage in self._spec.stages:
                if not self._is_forced:
                    await self._pass(stage, is_bake=False)
            if self._spec.drill:
                raise _GoBack(_Ended("a drill ends by going back"))
            await self._pass(_bake_stage(self._spec.bake), is_bake=True)
            await self._promote()
        except _GoBack as back:
            await self._roll_back(back.ended)
        except (Exception, asyncio.CancelledError) as error:
            is_cancelled = is_cancelled_exception(error)
            await self._roll_back(
                _Ended("cancelled" if is_cancelled else f"failed: {root_cause(error)}")
            )
            if is_cancelled:
                await self._settle()
                raise
        await self._settle()
        return self.status()

    # --- phases ---

    async def _preflight(self) -> None:
        """Check candidate and endpoint, and have the candidate loaded everywhere."""
        self._enter(RolloutState.PREFLIGHT, "preflight", "checks the candidate, has it loaded")
        self._opening_began = True
        opening = delivery_calls.start_open_canary(OpenCanary(spec=self._spec, holder=self._holder))
        await self._unless_aborted(opening)
        self._opened = await opening
        self._carried = StageProgress(cursors=self._opened.cursors)
        self._record(
            "rollout_started",
            {
                "candidate": self._opened.version,
                "stable": self._opened.stable.version,
                "evidence_sha256": self._opened.verification,
                "spec": self._spec.model_dump(mode="json"),
            },
        )

    async def _pass(self, stage: Stage, *, is_bake: bool) -> None:
        """Give the canary the stage's share, and go on when the judge says so."""
        assert self._opened is not None
        self._check_abort()
        share_bp = round(stage.canary_percent * 100)
        route = await delivery_calls.set_traffic(
            SetTraffic(
                endpoint=self._spec.endpoint,
                holder=self._holder,
                stage=stage_key(self._holder, stage.name),
                canary_bp=share_bp,
                shadow_bp=round(stage.shadow_percent * 100),
                lease_s=self._spec.lease.total_seconds(),
            )
        )
        self._share_bp = share_bp
        shown = f"{stage.canary_percent:g} % of users"
        if stage.shadow_percent:
            shown += f", {stage.shadow_percent:g} % of requests mirrored"
        self._enter(RolloutState.WATCHING, stage.name, shown)
        self._record(
            "traffic_changed",
            {"canary_bp": share_bp, "generation": route.generation, "stage": stage.name},
        )
        verdict = await self._judged(stage, is_bake=is_bake)
        self._carried = verdict.progress
        self._verdicts.append(_slim(verdict))
        if verdict.decision == "rollback":
            raise _GoBack(_Ended(verdict.reason, verdict))

    async def _judged(self, stage: Stage, *, is_bake: bool) -> StageVerdict:
        """The stage's verdict; while paused or waiting for approval only a rollback is one."""
        before: StageProgress | None = None
        while True:
            is_waiting = self._is_paused or self._state == RolloutState.APPROVAL
            handle = delivery_calls.start_watch_stage(
                WatchStage(
                    spec=self._spec,
                    holder=self._holder,
                    version=self._version,
                    stage=stage,
                    may_promote=not is_waiting,
                    is_bake=is_bake,
                    before=before,
                    carried=self._carried,
                ),
                f"{stage.name}: {'hold' if is_waiting else 'judge'}",
            )
            verdict = await self._until_steered(handle, stage, before, is_waiting=is_waiting)
            self._check_abort()
            if verdict.decision == "rollback":
                return verdict
            before = verdict.progress
            if self._is_forced:
                return verdict.model_copy(update={"decision": "promote", "reason": "by a person"})
            if verdict.decision == "promote" and not self._is_paused:
                if not stage.approval or stage.name in self._approved:
                    return verdict
                self._enter(RolloutState.APPROVAL, stage.name, verdict.reason)
            elif self._state == RolloutState.APPROVAL and stage.name in self._approved:
                return verdict.model_copy(update={"decision": "promote", "reason": "approved"})
            elif self._is_paused:
                self._enter(RolloutState.PAUSED, stage.name, "paused")
            elif self._state == RolloutState.PAUSED:
                self._enter(RolloutState.WATCHING, stage.name, "resumed")

    async def _until_steered(
        self,
        handle: ActivityHandle[StageVerdict],
        stage: Stage,
        before: StageProgress | None,
        *,
        is_waiting: bool,
    ) -> StageVerdict:
        """Wait for the verdict; if a person steers meanwhile, have the judge stop."""
        key = stage_key(self._holder, stage.name)

        def is_steered() -> bool:
            if self._abort is not None or self._is_forced:
                return True
            if self._state == RolloutState.APPROVAL:
                return stage.name in self._approved
            return self._is_paused != is_waiting

        steered = asyncio.create_task(workflow.wait_condition(is_steered))
        try:
            await workflow.wait([handle, steered], return_when=asyncio.FIRST_COMPLETED)
            was_steered = not handle.done()
            if was_steered:
                handle.cancel()
            try:
                return await handle
            except ActivityError as error:
                if not (was_steered and is_cancelled_exception(error)):
                    raise
                # It was stopped before it had begun: nothing new was seen.
                return StageVerdict(
                    decision="interrupted",
                    reason="asked to stop",
                    progress=before or begun(self._carried, key, workflow.now()),
                    decided_at=workflow.now(),
                )
        finally:
            steered.cancel()

    async def _unless_aborted(self, handle: ActivityHandle[CanaryOpened]) -> None:
        """Wait for preflight; an abort ends it."""
        aborted = asyncio.create_task(workflow.wait_condition(lambda: self._abort is not None))
        await workflow.wait([handle, aborted], return_when=asyncio.FIRST_COMPLETED)
        aborted.cancel()
        if not handle.done():
            handle.cancel()
            self._check_abort()

    async def _promote(self) -> None:
        """Make the candidate stable, unless a person aborts before it is."""
        self._check_abort()
        self._enter(RolloutState.PROMOTING, "promote", "makes the candidate stable")
        self._check_abort()
        route = await self._close(promote=True)
        self._was_promoted = True
        self._check_abort()  # it may have come while the row was written: then undo that
        if route.stable != self._version:
            raise _GoBack(_Ended("the candidate had lost the endpoint"))
        self._share_bp = WHOLE
        self._enter(RolloutState.PROMOTED, "done", f"{self._version} is stable")
        self._record("rollout_promoted", {"generation": route.generation, "version": self._version})

    async def _roll_back(self, ended: _Ended) -> None:
        """Take the traffic away, whatever it takes, then say why."""
        self._state, self._message = RolloutState.ROLLING_BACK, ended.reason
        generation = 0
        if self._opening_began:
            route = await self._close(promote=False)
            generation = route.generation
            if ended.by_verdict is not None and route.issued_at is not None:
                waited = route.issued_at - ended.by_verdict.decided_at
                self._traffic_ms = round(waited / timedelta(milliseconds=1), 1)
        self._share_bp = 0
        self._enter(RolloutState.ROLLED_BACK, self._stage, ended.reason)
        self._record(
            "rollout_rolled_back",
            {
                "generation": generation,
                "guardrail": ended.by_verdict.guardrail if ended.by_verdict else "",
                "reason": ended.reason[:500],
                "stage": self._stage,
                "version": self._version,
            },
        )

    async def _close(self, *, promote: bool) -> CanaryClosed:
        undo = self._was_promoted and not promote and self._opened is not None
        return await delivery_calls.close_canary(
            CloseCanary(
                endpoint=self._spec.endpoint,
                holder=self._holder,
                version=self._version or self._spec.model,
                promote=promote,
                restore=self._opened.stable if undo and self._opened else None,
            )
        )

    # --- bookkeeping ---

    @property
    def _holder(self) -> str:
        info = workflow.info()
        return f"{info.workflow_id}/{info.run_id}"

    @property
    def _version(self) -> str:
        return self._opened.version if self._opened else ""

    def _check_abort(self) -> None:
        if self._abort is not None:
            raise _GoBack(_Ended(self._abort))

    def _enter(self, state: RolloutState, stage: str, message: str) -> None:
        changed = state != self._state or not self._timeline
        self._state, self._stage, self._message = state, stage, message
        self._timeline.append(
            RolloutEvent(
                sequence=self._timeline[-1].sequence + 1 if self._timeline else 1,
                at=workflow.now(),
                state=state,
                stage=stage,
                message=message,
            )
        )
        del self._timeline[:-KEPT_EVENTS]
        if changed:
            workflow.upsert_search_attributes([STATE.value_set(state.value)])
        show_table(
            [
                ("state", f"**{state}**, {stage}"),
                ("why", message),
                ("candidate", self._version),
                ("its share", f"{self._share_bp / 100:g} %"),
            ]
        )

    def _record(self, event_type: str, data: dict[str, object]) -> None:
        """Let the ledger know, beside the work."""
        self._facts += 1
        run = workflow.info().first_execution_run_id
        fact = Fact(
            event_type=event_type,
            key=f"{run}/{self._facts}",
            data={"endpoint": self._spec.endpoint, **data},
            person=self._rollout.owner if self._facts == 1 else None,
        )
        self._recording.append(
            calls.start_record(
                RecordFacts(
                    job_id=workflow.info().workflow_id,
                    stream=f"endpoint:{self._spec.endpoint}",
                    facts=[fact],
                )
            )
        )

    async def _settle(self) -> None:
        for handle in self._recording:
            await asyncio.shield(handle)

    # --- messages ---

    @workflow.update
    def approve(self, approval: Approval) -> RolloutStatus:
        """Let a stage that has shown its evidence be left."""
        self._approved.add(approval.stage)
        return self.status()

    @workflow.update
    def pause(self, reason: Reason) -> RolloutStatus:
        """Keep the share; go no further."""
        self._is_paused = True
        return self.status()

    @workflow.update
    def resume(self, reason: Reason) -> RolloutStatus:
        """Go on."""
        self._is_paused = False
        return self.status()

    @workflow.update
    def promote(self, reason: Reason) -> RolloutStatus:
        """Skip what is left of the stages; it still bakes."""
        self._is_forced, self._is_paused = True, False
        return self.status()

    @workflow.update
    def abort(self, reason: Reason) -> RolloutStatus:
        """Go back, whatever the state."""
        who = f" by {reason.person}" if reason.person else ""
        self._abort = f"aborted{who}" + (f": {reason.reason}" if reason.reason else "")
        return self.status()

    @approve.validator
    def _can_approve(self, approval: Approval) -> None:
        self._refuse_when_over()
        if self._state != RolloutState.APPROVAL or approval.stage != self._stage:
            waits = self._stage if self._state == RolloutState.APPROVAL else "none"
            raise _conflict(f"stage {approval.stage!r} does not wait for approval; {waits} does")

    @pause.validator
    def _can_pause(self, reason: Reason) -> None:
        self._refuse_when_over()
        if self._is_paused:
            raise _conflict("already paused")
        if self._state == RolloutState.PROMOTING:
            raise _conflict("it is being promoted; abort it if that is wrong")

    @resume.validator
    def _can_resume(self, reason: Reason) -> None:
        self._refuse_when_over()
        if not self._is_paused:
            raise _conflict("not paused")

    @promote.validator
    def _can_promote(self, reason: Reason) -> None:
        self._refuse_when_over()
        if self._opened is None:
            raise _conflict("preflight is not over")

    @abort.validator
    def _can_abort(self, reason: Reason) -> None:
        self._refuse_when_over()

    def _refuse_when_over(self) -> None:
        if self._state.is_final:
            raise _conflict(f"the rollout is {self._state}")

    @workflow.query
    def status(self) -> RolloutStatus:
        """Where it is."""
        return RolloutStatus(
            endpoint=self._spec.endpoint,
            state=self._state,
            stage=self._stage,
            message=self._message,
            candidate=self._version or self._spec.model,
            stable=self._opened.stable.version if self._opened else "",
            canary_percent=self._share_bp / 100,
            timeline=self._timeline,
            verdicts=self._verdicts,
            verdict_to_traffic_ms=self._traffic_ms,
        )


def _bake_stage(bake: timedelta) -> Stage:
    return Stage.model_construct(
        name="bake",
        canary_percent=100.0,
        shadow_percent=0.0,
        requests=None,
        min_duration=bake,
        deadline=bake,
        approval=False,
    )


def _slim(verdict: StageVerdict) -> StageVerdict:
    """A verdict without what only the judge needs."""
    progress = verdict.progress.model_copy(
        update={"cursors": {}, "first_cursors": {}, "latencies_s": []}
    )
    return verdict.model_copy(update={"progress": progress})


def _conflict(message: str) -> ApplicationError:
    return ApplicationError(message, type="Conflict", non_retryable=True)
