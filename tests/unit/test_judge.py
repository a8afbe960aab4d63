"""Judging a stage, from outcomes alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loomos.jobs.rollouts import RolloutSpec, StageProgress, StageVerdict, WatchStage, begun
from loomos.manifest import Guardrail, Stage
from loomos.rollouts.judge import StageJudge
from loomos.serving.outcomes import Outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "run/canary"
CANDIDATE = "m@bbbbbbbb"


def make_watch(share: float = 25.0, requests: int | None = 100, **changes: Any) -> WatchStage:
    stage = Stage(
        name="canary", canary_percent=share, requests=requests, deadline=timedelta(hours=1)
    )
    spec = RolloutSpec(
        endpoint="chat",
        model=CANDIDATE,
        stages=[stage],
        guardrails=changes.pop("guardrails", [Guardrail(event="error", margin=0.1)]),
        **changes.pop("spec", {}),
    )
    return WatchStage(spec=spec, holder="h/run", version=CANDIDATE, stage=stage, **changes)


def make_judge(watch: WatchStage, progress: StageProgress | None = None) -> StageJudge:
    return StageJudge(watch, progress or begun(watch.carried, KEY, NOW))


def outcome(arm: str, number: int, **changes: Any) -> Outcome:
    version = CANDIDATE if arm == "canary" else "m@aaaaaaaa"
    fields = {
        "id": f"{arm}-{number}",
        "at": NOW,
        "user": f"u{arm}{number}",
        "arm": arm,
        "assigned": arm,
        "version": version,
        "stage": KEY,
        "latency_s": 0.1,
    }
    return Outcome.model_validate({**fields, **changes})


def traffic(rng: random.Random, share: float, bad: dict[str, float], n: int) -> Iterator[Outcome]:
    for number in range(n):
        arm = "canary" if rng.random() < share else "stable"
        yield outcome(arm, number, status=500 if rng.random() < bad[arm] else 200)


def run(judge: StageJudge, outcomes: Iterator[Outcome], look: int = 20) -> StageVerdict | None:
    batch: list[Outcome] = []
    for item in outcomes:
        batch.append(item)
        if len(batch) == look:
            judge.take(batch, NOW)
            verdict = judge.verdict(NOW)
            if verdict is not None:
                return verdict
            batch = []
    return None


def test_a_sound_canary_is_promoted_at_the_planned_look() -> None:
    watch = make_watch()
    verdict = run(
        make_judge(watch), traffic(random.Random(0), 0.25, {"canary": 0, "stable": 0}, 5000)
    )
    assert verdict is not None and verdict.decision == "promote"
    assert 100 <= verdict.progress.guardrails["error"].stage.canary_n < 120
    assert verdict.progress.looks == 1


def test_a_canary_that_fails_is_rolled_back_and_the_guardrail_named() -> None:
    watch = make_watch(requests=100_000)
    verdict = run(
        make_judge(watch), traffic(random.Random(1), 0.25, {"canary": 0.3, "stable": 0.01}, 5000)
    )
    assert verdict is not None and verdict.decision == "rollback"
    assert verdict.guardrail == "error"
    assert verdict.progress.guardrails["error"].total.canary_n < 100


def test_whole_rollouts_of_sound_canaries_are_seldom_rolled_back() -> None:
    rng = random.Random(2)
    rates = {"canary": 0.05, "stable": 0.05}
    rolled_back = 0
    for _ in range(60):
        verdict = run(make_judge(make_watch(requests=100_000)), traffic(rng, 0.25, rates, 2000), 50)
        rolled_back += verdict is not None
    assert rolled_back <= 6


def test_a_judge_that_died_goes_on_with_the_same_evidence() -> None:
    watch = make_watch(requests=100_000)
    outcomes = list(traffic(random.Random(3), 0.25, {"canary": 0.06, "stable": 0.05}, 800))
    whole = make_judge(watch)
    for start in range(0, 800, 20):
        whole.take(outcomes[start : start + 20], NOW)
    first = make_judge(watch)
    for start in range(0, 400, 20):
        first.take(outcomes[start : start + 20], NOW)
    saved = StageProgress.model_validate_json(first.progress.model_dump_json())
    second = make_judge(watch, saved)
    second.remember(outcomes[:400])
    for start in range(400, 800, 20):
        second.take(outcomes[start : start + 20], NOW)
    assert second.progress == whole.progress
    # Without its memory of users it would count those who come back again.
    forgetful = make_judge(watch, saved)
    forgetful.take(outcomes[:20], NOW)
    assert forgetful.progress.guardrails["error"].stage != saved.guardrails["error"].stage


def test_of_a_user_who_comes_back_the_first_request_counts() -> None:
    judge = make_judge(make_watch())
    judge.take([outcome("canary", 1), outcome("canary", 1, id="again", status=500)], NOW)
    counts = judge.progress.guardrails["error"].stage
    assert (counts.canary_n, counts.canary_events) == (1, 0)


def test_outcomes_of_other_stages_versions_and_stand_ins_do_not_count() -> None:
    judge = make_judge(make_watch())
    judge.take(
        [
            outcome("canary", 1, stage="run/other"),
            outcome("canary", 2, version="m@cccccccc"),
            outcome("stable", 3, is_counted=False, assigned="canary"),
        ],
        NOW,
    )
    counts = judge.progress.guardrails["error"].stage
    assert counts.canary_n == counts.control_n == 0
    # The stand-in was meant for the canary all the same: the split is sound.
    assert (judge.progress.canary_users, judge.progress.control_users) == (1, 0)


def test_a_broken_split_rolls_back_before_anything_is_compared() -> None:
    judge = make_judge(make_watch(share=5.0, requests=10_000))
    verdict = run(judge, traffic(random.Random(4), 0.2, {"canary": 0, "stable": 0}, 3000))
    assert verdict is not None and verdict.decision == "rollback"
    assert verdict.guardrail == "sample_ratio"


def test_latency_is_compared_with_the_percentile_of_the_control() -> None:
    guardrails = [Guardrail(event="latency", margin=0.1)]
    watch = make_watch(requests=100_000, guardrails=guardrails)
    rng = random.Random(5)

    def slow() -> Iterator[Outcome]:
        for number in range(2000):
            arm = "canary" if rng.random() < 0.25 else "stable"
            usual = rng.uniform(0.1, 0.2)
            yield outcome(arm, number, latency_s=usual * (1.5 if arm == "canary" else 1))

    verdict = run(make_judge(watch), slow())
    assert verdict is not None and verdict.guardrail == "latency"
    assert verdict.progress.slow_s == pytest.approx(0.195, abs=0.01)


def test_a_mirrored_answer_is_compared_but_not_in_time() -> None:
    guardrails = [Guardrail(event="latency", margin=0.1), Guardrail(event="empty", margin=0.2)]
    watch = make_watch(share=0.0, requests=30, guardrails=guardrails)
    judge = make_judge(watch)

    def mirrored() -> Iterator[Outcome]:
        for number in range(200):
            yield outcome("stable", number)
            yield outcome("canary", number, is_shadow=True, assigned=None, latency_s=9.0)

    verdict = run(judge, mirrored())
    assert verdict is not None and verdict.decision == "promote"
    assert verdict.progress.guardrails["latency"].stage.canary_n == 0


def test_thumbs_and_events_count_only_where_they_were_given() -> None:
    guardrails = [
        Guardrail(event="error", margin=0.1),
        Guardrail(event="thumbs_down", margin=0.2),
        Guardrail(event="custom", name="crashed", margin=0.2),
    ]
    judge = make_judge(make_watch(guardrails=guardrails))
    judge.take(
        [
            outcome("canary", 1),
            outcome("canary", 1, score=-1),
            outcome("canary", 2, score=1),
            outcome("canary", 3, events={"crashed": True}),
        ],
        NOW,
    )
    found = {
        k: (e.stage.canary_n, e.stage.canary_events) for k, e in judge.progress.guardrails.items()
    }
    assert found == {"error": (1, 0), "thumbs_down": (2, 1), "custom:crashed": (1, 1)}


def test_silence_holds_and_then_rolls_back() -> None:
    watch = make_watch(spec={"hold": timedelta(minutes=5)})
    judge = make_judge(watch)
    judge.take([outcome("canary", 1)], NOW)
    assert judge.verdict(NOW + timedelta(minutes=4)) is None
    verdict = judge.verdict(NOW + timedelta(minutes=5))
    assert verdict is not None and verdict.decision == "rollback"
    assert "no outcomes for 300 s" in verdict.reason


def test_a_deadline_without_evidence_rolls_back() -> None:
    judge = make_judge(make_watch(spec={"hold": timedelta(hours=5)}))
    verdict = judge.verdict(NOW + timedelta(hours=1))
    assert verdict is not None and verdict.decision == "rollback"
    assert "deadline" in verdict.reason


def test_while_paused_only_reasons_to_roll_back_count() -> None:
    watch = make_watch(requests=10, may_promote=False)
    judge = make_judge(watch)
    assert run(judge, traffic(random.Random(6), 0.25, {"canary": 0, "stable": 0}, 1000)) is None
    fresh = make_judge(watch)
    verdict = run(fresh, traffic(random.Random(8), 0.25, {"canary": 1.0, "stable": 0}, 1000))
    assert verdict is not None and verdict.decision == "rollback"


def test_looks_for_promotion_are_few_and_each_harder() -> None:
    """A canary that is worse by the whole margin gets through as seldom as planned."""
    rng = random.Random(9)
    promoted = 0
    for _ in range(100):
        watch = make_watch(share=50.0, requests=60, spec={"alpha": 1e-9 + 0.0001})
        verdict = run(make_judge(watch), traffic(rng, 0.5, {"canary": 0.15, "stable": 0.05}, 2000))
        promoted += verdict is not None and verdict.decision == "promote"
    assert promoted <= 12


def test_a_bake_compares_with_what_the_control_did_before() -> None:
    watch = make_watch()
    before = make_judge(watch)
    run(before, traffic(random.Random(10), 0.25, {"canary": 0.02, "stable": 0.02}, 1500))
    baking = make_watch(share=100.0, is_bake=True, carried=before.progress)
    judge = StageJudge(baking, begun(baking.carried, KEY, NOW))
    bad = (outcome("canary", 10_000 + n, status=500 if n % 3 == 0 else 200) for n in range(400))
    verdict = run(judge, bad)
    assert verdict is not None and verdict.decision == "rollback"
    calm = StageJudge(baking, begun(baking.carried, KEY, NOW))
    assert run(calm, (outcome("canary", 20_000 + n) for n in range(400))) is None
    assert calm.verdict(NOW + timedelta(minutes=1)) is None
    over = NOW + baking.spec.bake
    calm.take([outcome("canary", 30_000)], over)
    done = calm.verdict(over)
    assert done is not None and done.decision == "promote"
