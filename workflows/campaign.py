"""A campaign: rounds of trainings, after each of which policies are averaged and appraised.

Every round starts from what the last one left. A member's training is a child `TrainingRun`, so it
survives what a job survives; one that fails loses its round, never the campaign.
"""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import ApplicationError, ChildWorkflowError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.campaigns import (
        BlendRequest,
        CampaignInput,
        CampaignResult,
        CampaignStatus,
        CarriedCampaign,
        MemberReport,
        PolicyState,
        RoundReport,
        WeightedPolicy,
    )
    from loomos.jobs.names import SUMMARY_MEMO
    from loomos.jobs.states import JobState
    from loomos.jobs.training import TimelineEntry, TrainingRunInput
    from loomos.manifest import CampaignMember, CampaignPhase, TrainingSpec
    from loomos.rl import campaigns
    from workflows.calls import sign_version
    from workflows.campaign_calls import blend_policies
    from workflows.causes import as_failure, root_cause
    from workflows.child_jobs import run_job
    from workflows.long_runs import is_long, record
    from workflows.state_log import StateLog

CAMPAIGN_LABEL = "campaign"
"""Label of a member's jobs: the campaign's id."""


@workflow.defn(name="RLCampaign")
class RLCampaign:
    """One campaign."""

    @workflow.init
    def __init__(self, run: CampaignInput) -> None:
        carried = campaigns.unpack(
            run.carried or CarriedCampaign(started_at=workflow.info().start_time)
        )
        self._run, self._spec = run, run.spec
        self._phase, self._phase_rounds = carried.phase, carried.phase_rounds
        self._weights = dict(carried.weights)
        self._policies = dict(carried.policies)
        self._rounds = list(carried.rounds)
        self._log = StateLog(
            TimelineEntry, carried.timeline, JobState.QUEUED, carried.started_at, self._rows
        )

    @workflow.run
    async def run(self, run: CampaignInput) -> CampaignResult:
        """Carry the campaign to its end."""
        try:
            if run.carried is None:
                await self._begin()
            while (phase := self._next_phase()) is not None:
                await self._round(phase)
                if is_long():
                    await self._continue_as_new()
            return await self._conclude()
        except workflow.ContinueAsNewError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled_exception(error):
                await self._end(JobState.CANCELLED, "cancelled")
                raise
            assert isinstance(error, Exception)
            failure = as_failure(error)
            if failure is None:
                raise
            await self._end(JobState.FAILED, root_cause(failure))
            if failure is error:
                raise
            raise failure from error

    # --- phases ---

    async def _begin(self) -> None:
        self._log.enter(JobState.STARTING, "makes the first policies")
        await self._record("campaign_started", {"spec": self._spec.model_dump(mode="json")})
        await self._blend(RoundReport(number=0))

    def _next_phase(self) -> CampaignPhase | None:
        """The phase of the next round; None when all are over."""
        while self._phase < len(self._spec.phases):
            phase = self._spec.phases[self._phase]
            if self._phase_rounds == 0:
                self._weights = campaigns.phase_weights(self._spec, phase, self._weights)
                self._log.enter(JobState.RUNNING, f"phase {phase.name}")
                return phase
            over = self._phase_rounds >= phase.rounds
            if not over and not campaigns.is_reached(phase, self._weights, self._rounds[-1]):
                return phase
            self._phase, self._phase_rounds = self._phase + 1, 0
        return None

    async def _round(self, phase: CampaignPhase) -> None:
        """Train, average, appraise; then decide how the next round is."""
        number = len(self._rounds)
        places = asyncio.Semaphore(self._spec.parallelism)
        training = [
            (member, asyncio.create_task(self._train(number, place, member, label, places)))
            for label, members in self._spec.policies.items()
            for place, member in enumerate(members)
            if member.name in self._weights
        ]
        try:
            reports = {member.name: await task for member, task in training}
        finally:
            for _, task in training:
                task.cancel()
            await asyncio.gather(*(task for _, task in training), return_exceptions=True)
        failed = [report for report in reports.values() if report.error]
        if len(failed) == len(reports):
            raise ApplicationError(
                f"every training of round {number} failed; the last: {failed[-1].error}",
                type="MembersFailed",
                non_retryable=True,
            )
        self._phase_rounds += 1
        await self._blend(RoundReport(number=number, phase=phase.name, members=reports))
        if phase.adapts:
            self._weights = campaigns.adapted(self._spec, self._weights, self._rounds)

    async def _train(
        self, number: int, place: int, member: CampaignMember, label: str, places: asyncio.Semaphore
    ) -> MemberReport:
        """One member's training in a round; that it fails is its result."""
        async with places:
            began = workflow.now()
            job = TrainingRunInput(
                job_id=f"{self._run.campaign_id}-{member.name}-r{number}",
                name=f"{self._run.name}-{member.name}",
                owner=self._run.owner,
                project=self._run.project,
                labels={CAMPAIGN_LABEL: self._run.campaign_id},
                spec=self._training(number, place, member, label),
            )
            report = MemberReport(job_id=job.job_id)
            try:
                result = await run_job(
                    job, name=self._run.name, summary=f"{member.name}, round {number}"
                )
            except ChildWorkflowError as error:
                return report.model_copy(update={"error": root_cause(error)[:500]})
            assert result.model is not None
            return report.model_copy(
                update={
                    "version": f"{result.model.name}@{result.model.version}",
                    "episode_return": result.episode_return,
                    "training_s": (workflow.now() - began).total_seconds(),
                }
            )

    def _training(
        self, number: int, place: int, member: CampaignMember, label: str
    ) -> TrainingSpec:
        """Each round and member has seeds of its own, so that no episode is played twice."""
        policy = self._policies[label]
        return self._spec.training(
            member,
            policy=f"model:{policy.version}",
            environment=policy.environment,
            seed=number * len(self._spec.members) + place,
        )

    async def _blend(self, report: RoundReport) -> None:
        """Make every policy out of what its members published."""
        weights = {n: w for n, w in self._weights.items() if _has_version(report, n)}
        weights = campaigns.scaled(self._spec, weights)
        labels = [
            label
            for label, members in self._spec.policies.items()
            if report.number == 0 or any(member.name in weights for member in members)
        ]
        found = await asyncio.gather(*(self._blend_one(report, label, weights) for label in labels))
        made = dict(zip(labels, found, strict=True))
        played = {label: campaigns.difficulty(p.environment) for label, p in made.items()}
        self._policies |= made
        report = report.model_copy(
            update={
                "weights": weights,
                "scores": campaigns.scores(self._spec, self._policies),
                "appraisals": {label: p.appraisal for label, p in self._policies.items()},
                "difficulty": played if self._spec.curriculum else {},
            }
        )
        self._rounds.append(report)
        self._policies |= campaigns.moved_on(self._spec, made)
        self._log.note(f"round {report.number}: {_told(report)}")

    async def _blend_one(
        self, report: RoundReport, label: str, weights: dict[str, float]
    ) -> PolicyState:
        members = self._spec.policies[label]
        before = self._policies.get(label)
        environment = (
            before.environment
            if before is not None
            else campaigns.at_start(self._spec, members[0].environment)
        )
        blended = await blend_policies(
            BlendRequest(
                blend_id=f"{self._run.campaign_id}/{label}/{report.number}",
                name=f"{self._run.name}-{label}",
                policies=[
                    WeightedPolicy(
                        version=report.members[member.name].version, weight=weights[member.name]
                    )
                    for member in members
                    if member.name in weights
                ],
                training=self._spec.training(
                    members[0], policy=None, environment=environment, seed=0
                ),
                episodes=self._spec.evaluate_episodes,
                is_draft=workflow.patched("signed-policies"),
            ),
            Priority(priority_key=self._spec.priority, fairness_key=self._run.project),
        )
        if workflow.patched("signed-policies"):
            await sign_version(blended.version)
        spent = sum(report.members[m.name].training_s for m in members if m.name in report.members)
        return PolicyState(
            version=blended.version,
            environment=environment,
            appraisal=blended.appraisal,
            training_s=spent + (before.training_s if before is not None else 0.0),
        )

    async def _conclude(self) -> CampaignResult:
        await self._end(JobState.COMPLETED, f"{len(self._rounds) - 1} rounds are done")
        return CampaignResult(
            state=JobState.COMPLETED,
            policies={label: policy.version for label, policy in self._policies.items()},
            rounds=len(self._rounds) - 1,
        )

    async def _end(self, state: JobState, message: str) -> None:
        """Let the ledger, lists and people know how it ended."""
        versions = {label: policy.version for label, policy in self._policies.items()}
        data = {
            "message": message[:500],
            "policies": versions,
            "rounds": len(self._rounds),
            "state": state,
        }
        await self._record("campaign_ended", data)
        summary = {
            "returns": {n: p.appraisal.mean_return for n, p in self._policies.items()},
            "rounds": max(0, len(self._rounds) - 1),
        }
        workflow.upsert_memo({SUMMARY_MEMO: summary})
        self._log.enter(state, message)

    # --- bookkeeping ---

    async def _continue_as_new(self) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        carried = CarriedCampaign(
            phase=self._phase,
            phase_rounds=self._phase_rounds,
            weights=self._weights,
            policies=self._policies,
            rounds=self._rounds,
            timeline=self._log.timeline,
            started_at=self._log.started_at,
        )
        update = {"carried": campaigns.pack(carried)}
        workflow.continue_as_new(self._run.model_copy(update=update))

    async def _record(self, event_type: str, data: dict[str, object]) -> None:
        person = self._run.owner if event_type == "campaign_started" else None
        await record("campaign", self._run.campaign_id, event_type, data, person)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("rounds", str(max(0, len(self._rounds) - 1)))]
        rows += [
            (label, f"{policy.appraisal.mean_return:.4g} by {policy.version}")
            for label, policy in self._policies.items()
        ]
        return rows

    # --- messages ---

    @workflow.query
    def status(self) -> CampaignStatus:
        """Where it is."""
        status = CampaignStatus(
            campaign_id=self._run.campaign_id,
            name=self._run.name,
            owner=self._run.owner,
            project=self._run.project,
            state=self._log.state,
            message=self._log.message,
            spec=self._spec,
            phase=self._spec.phases[min(self._phase, len(self._spec.phases) - 1)].name,
            weights=self._weights,
            policies=self._policies,
            rounds=self._rounds,
            started_at=self._log.started_at,
            finished_at=self._log.finished_at,
            timeline=self._log.timeline,
        )
        return campaigns.told(status)


def _has_version(report: RoundReport, name: str) -> bool:
    return name in report.members and bool(report.members[name].version)


def _told(report: RoundReport) -> str:
    """A round for people."""
    parts = [f"{label} {a.mean_return:.4g}" for label, a in report.appraisals.items()]
    parts += [f"{name} failed" for name, member in report.members.items() if member.error]
    return ", ".join(parts)
