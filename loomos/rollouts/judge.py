"""Judging a stage: from outcomes to a verdict. Pure, so that a judge that died is continued.

Every guardrail is a 0/1 event of a unit, compared with a control that answers at the same time. A
unit is a user: of one who comes back in a stage, the first request counts. Evidence that the canary
is worse is an e-process, which adds up over stages and may be looked at after every outcome. Looks
for promotion are few and planned: at n units, then at 2n, 4n, ..., with alpha/2, alpha/4, ... of
the error that a promotion may have, so that a stage never gets more than alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime

from loomos.jobs.rollouts import (
    Counts,
    Evidence,
    StageProgress,
    StageVerdict,
    WatchStage,
)
from loomos.manifest import Guardrail
from loomos.prism.statistics.eprocess import ArmCounts, OneSample, SampleRatio, TwoSample
from loomos.prism.statistics.intervals import wilson
from loomos.prism.statistics.power import non_inferiority_n, non_inferiority_p
from loomos.serving.outcomes import Outcome

BLOCK = 10
"""Canary units that the e-process bets on at once."""
FROZEN_FROM = 50
"""Answers of the control that its 95th percentile of latency is taken from."""
PROMOTION_ALPHA, PROMOTION_POWER = 0.05, 0.8
RATIO_ALPHA = 0.001
"""Chance to take a sound split for a broken one."""
FEWEST_REPORTS = 20
"""Reports of people below which a guardrail that lives of them decides nothing at promotion."""
FEWEST_EXPECTED_RATE = 0.01
"""The control's rate is taken to be at least this when a look is planned."""

_REPORTED = ("thumbs_down", "custom")


class StageJudge:
    """Judges one stage.

    Args:
        watch: what is watched.
        progress: what was seen already; the outcomes after its cursors come next.
    """

    def __init__(self, watch: WatchStage, progress: StageProgress) -> None:
        self._watch, self.progress = watch, progress
        self._seen: set[tuple[str, str, str]] = set()
        self._evidence = {
            g.key: progress.guardrails.get(g.key, Evidence()) for g in watch.spec.guardrails
        }

    # --- taking in ---

    def remember(self, outcomes: Iterable[Outcome]) -> None:
        """Learn again who was seen, from outcomes that are counted already."""
        for outcome in outcomes:
            if self._is_mine(outcome):
                self._first_of_user(outcome)

    def take(self, outcomes: Iterable[Outcome], now: datetime) -> None:
        """Count outcomes that are new."""
        mine = [outcome for outcome in outcomes if self._is_mine(outcome)]
        for outcome in mine:
            if not self._first_of_user(outcome):
                continue
            self._count_user(outcome)
            if not outcome.is_counted:
                continue
            for guardrail in self._watch.spec.guardrails:
                value = self._value(guardrail, outcome)
                if value is not None:
                    self._count(guardrail.key, outcome.arm, value)
            if outcome.arm == "stable" and not _is_report(outcome):
                self._freeze(outcome)
        for key in self._evidence:
            self._bet(key)
        changes: dict[str, object] = {"guardrails": dict(self._evidence)}
        if mine:
            changes["last_outcome_at"] = now
        self.progress = self.progress.model_copy(update=changes)

    def _is_mine(self, outcome: Outcome) -> bool:
        of_stage = outcome.stage == self.progress.stage
        of_candidate = outcome.arm == "stable" or outcome.version == self._watch.version
        return of_stage and of_candidate

    def _first_of_user(self, outcome: Outcome) -> bool:
        kind = "report" if _is_report(outcome) else "shadow" if outcome.is_shadow else "request"
        key = (kind, outcome.arm, outcome.user)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _count_user(self, outcome: Outcome) -> None:
        if outcome.assigned is None or outcome.is_shadow or _is_report(outcome):
            return
        name = "canary_users" if outcome.assigned == "canary" else "control_users"
        count = getattr(self.progress, name) + 1
        self.progress = self.progress.model_copy(update={name: count})

    def _value(self, guardrail: Guardrail, outcome: Outcome) -> bool | None:
        """Whether the unit had the event; None if it is no unit of this guardrail."""
        if _is_report(outcome):
            if guardrail.event == "thumbs_down" and outcome.score is not None:
                return outcome.score < 0
            if guardrail.event == "custom":
                return outcome.events.get(guardrail.name)
            return None
        if guardrail.event in _REPORTED:
            return None
        failed = outcome.status >= 500
        if guardrail.event == "error":
            return failed
        if failed:
            return None
        if guardrail.event == "latency":
            return self._is_slow(outcome)
        if guardrail.event == "detector":
            return guardrail.name in outcome.hits
        return outcome.is_empty if guardrail.event == "empty" else outcome.is_looping

    def _is_slow(self, outcome: Outcome) -> bool | None:
        """A mirrored answer comes on top of the load that the control had: not comparable."""
        slow = self.progress.slow_s
        if slow is None or self._watch.stage.canary_percent == 0:
            return None
        return outcome.latency_s > slow

    def _freeze(self, outcome: Outcome) -> None:
        if self.progress.slow_s is not None or outcome.status >= 500:
            return
        latencies = [*self.progress.latencies_s, outcome.latency_s]
        changes: dict[str, object] = {"latencies_s": latencies}
        if len(latencies) >= FROZEN_FROM:
            slow = sorted(latencies)[math.ceil(0.95 * len(latencies)) - 1]
            changes = {"latencies_s": [], "slow_s": slow}
        self.progress = self.progress.model_copy(update=changes)

    def _count(self, key: str, arm: str, value: bool) -> None:
        evidence = self._evidence[key]
        self._evidence[key] = evidence.model_copy(
            update={
                "stage": _add(evidence.stage, arm, value),
                "pending": _add(evidence.pending, arm, value),
            }
        )
        if self._evidence[key].pending.canary_n >= BLOCK:
            self._bet(key)

    def _bet(self, key: str) -> None:
        """Let the e-process bet on the units that wait, once both arms have some."""
        evidence = self._evidence[key]
        waiting, total = evidence.pending, evidence.total
        canary = ArmCounts(waiting.canary_n, waiting.canary_events)
        control = ArmCounts(waiting.control_n, waiting.control_events)
        if not canary.n or not (control.n or self._watch.is_bake):
            return
        before = ArmCounts(total.canary_n, total.canary_events)
        beside = ArmCounts(total.control_n, total.control_events)
        test: TwoSample | OneSample
        if self._watch.is_bake:
            usual = wilson(total.control_events, total.control_n).high if total.control_n else 0.05
            alone = OneSample(before, tuple(evidence.log_bets) or OneSample().log_bets)
            test = alone.update(canary, min(usual, 0.9))
            control = ArmCounts(0, 0)
        else:
            pair = TwoSample(before, beside, tuple(evidence.log_bets) or TwoSample().log_bets)
            test = pair.update(canary, control)
        self._evidence[key] = evidence.model_copy(
            update={
                "pending": Counts(),
                "total": Counts(
                    canary_n=total.canary_n + canary.n,
                    canary_events=total.canary_events + canary.failures,
                    control_n=total.control_n + control.n,
                    control_events=total.control_events + control.failures,
                ),
                "log_bets": list(test.log_bets),
                "log_e": test.log_e,
            }
        )

    # --- deciding ---

    def verdict(self, now: datetime) -> StageVerdict | None:
        """What to do; None to go on watching."""
        worst = self._mismatch(now) or self._worse(now) or self._silent(now)
        return worst or self._enough(now) or self._too_late(now)

    def say(self, decision: str, reason: str, now: datetime, guardrail: str = "") -> StageVerdict:
        """A verdict on what was seen."""
        return StageVerdict.model_validate(
            {
                "decision": decision,
                "reason": reason,
                "guardrail": guardrail,
                "progress": self.progress,
                "decided_at": now,
            }
        )

    def _mismatch(self, now: datetime) -> StageVerdict | None:
        share = self._watch.stage.canary_percent / 100
        if self._watch.is_bake or not 0 < share < 1:
            return None
        seen = SampleRatio(self.progress.canary_users, self.progress.control_users)
        if seen.log_e(share) < math.log(1 / RATIO_ALPHA):
            return None
        total = seen.canary + seen.control
        return self.say(
            "rollback",
            f"sample ratio: {seen.canary} of {total} users reached the canary where {share:.1%} "
            "was meant; the split or the counting is broken",
            now,
            "sample_ratio",
        )

    def _worse(self, now: datetime) -> StageVerdict | None:
        limit = math.log(len(self._evidence) / self._watch.spec.alpha)
        key, evidence = max(self._evidence.items(), key=lambda item: item[1].log_e)
        if evidence.log_e < limit:
            return None
        seen = evidence.total
        return self.say(
            "rollback",
            f"{key}: {seen.canary_events} of {seen.canary_n} with the canary, "
            f"{seen.control_events} of {seen.control_n} with its control; evidence "
            f"{math.exp(min(evidence.log_e, 50)):.3g}, {math.exp(limit):.3g} was enough",
            now,
            key,
        )

    def _silent(self, now: datetime) -> StageVerdict | None:
        began = self.progress.began_at or now
        since = self.progress.last_outcome_at or began
        if now - since < self._watch.spec.hold:
            return None
        waited = int((now - since).total_seconds())
        return self.say("rollback", f"no outcomes for {waited} s: nobody knows how it is", now)

    def _too_late(self, now: datetime) -> StageVerdict | None:
        began = self.progress.began_at or now
        if self._watch.is_bake or not self._watch.may_promote:
            return None
        if now - began < self._watch.stage.deadline:
            return None
        return self.say(
            "rollback", f"{self.progress.note or 'too few units'} by the stage's deadline", now
        )

    def _enough(self, now: datetime) -> StageVerdict | None:
        began = self.progress.began_at or now
        watch = self._watch
        if not watch.may_promote:
            return None
        if watch.is_bake:
            over = now - began >= watch.spec.bake
            return self.say("promote", "nothing happened while it baked", now) if over else None
        if now - began < watch.stage.min_duration:
            return None
        return self._look(now)

    def _look(self, now: datetime) -> StageVerdict | None:
        """Take the next planned look, if the units are there."""
        first = self._watch.stage.requests or self._plan()
        if first is None:
            return None
        needed = first * 2**self.progress.looks
        required = [g for g in self._watch.spec.guardrails if self._is_required(g)]
        judged = [
            guardrail
            for guardrail in self._watch.spec.guardrails
            if guardrail in required
            or self._evidence[guardrail.key].stage.canary_n >= FEWEST_REPORTS
        ]
        fewest = min((self._evidence[g.key].stage.canary_n for g in required), default=0)
        if not judged or fewest < needed:
            self._note(f"{fewest} of {needed} units of the canary")
            return None
        alpha = PROMOTION_ALPHA / 2 ** (self.progress.looks + 1)
        short = [g.key for g in judged if self._inferior_p(g) > alpha]
        self.progress = self.progress.model_copy(update={"looks": self.progress.looks + 1})
        if short:
            self._note(
                f"look {self.progress.looks} did not show that {', '.join(short)} is no worse"
            )
            return None
        return self.say(
            "promote",
            f"no worse than the control by more than the margins, at {fewest} units (look "
            f"{self.progress.looks})",
            now,
        )

    def _is_required(self, guardrail: Guardrail) -> bool:
        """Whether a promotion needs units of this guardrail; what people report may be rare."""
        if guardrail.event == "latency":
            return self._watch.stage.canary_percent > 0
        return guardrail.event not in _REPORTED

    def _inferior_p(self, guardrail: Guardrail) -> float:
        seen = self._evidence[guardrail.key].stage
        return non_inferiority_p(
            seen.canary_events,
            seen.canary_n,
            seen.control_events,
            seen.control_n,
            guardrail.margin,
        )

    def _plan(self) -> int | None:
        """Units for the first look: planned once, when the control's rates are roughly known."""
        if self.progress.planned_n is None:
            seen = max((e.stage.control_n for e in self._evidence.values()), default=0)
            if seen < FROZEN_FROM:
                self._note(f"{seen} of {FROZEN_FROM} units of the control")
                return None
            self.progress = self.progress.model_copy(update={"planned_n": self._needed()})
        return self.progress.planned_n

    def _needed(self) -> int:
        """Units of the canary at which the first look has the power that is wanted."""
        stage = self._watch.stage
        percent = stage.canary_percent or stage.shadow_percent
        # A mirrored request is answered by both, so its arms are as large as the share says.
        share = percent / 100 if stage.canary_percent else percent / (100 + percent)
        share = min(max(share, 0.001), 0.999)
        sizes: list[int] = []
        for guardrail in self._watch.spec.guardrails:
            if not self._is_required(guardrail):
                continue
            seen = self._evidence[guardrail.key].stage
            rate = seen.control_events / seen.control_n if seen.control_n else 0.0
            sizes.append(
                non_inferiority_n(
                    max(rate, FEWEST_EXPECTED_RATE),
                    guardrail.margin,
                    share,
                    PROMOTION_ALPHA / 2,
                    PROMOTION_POWER,
                )
            )
        return max(sizes, default=FEWEST_REPORTS)

    def _note(self, text: str) -> None:
        self.progress = self.progress.model_copy(update={"note": text})


def _is_report(outcome: Outcome) -> bool:
    return outcome.score is not None or bool(outcome.events)


def _add(counts: Counts, arm: str, value: bool) -> Counts:
    if arm == "canary":
        return counts.model_copy(
            update={
                "canary_n": counts.canary_n + 1,
                "canary_events": counts.canary_events + value,
            }
        )
    return counts.model_copy(
        update={
            "control_n": counts.control_n + 1,
            "control_events": counts.control_events + value,
        }
    )
