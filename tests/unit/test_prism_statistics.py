"""Intervals, tests and e-processes against tables, libraries and simulation."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from scipy.stats import binomtest

from loomos.prism.statistics import (
    ArmCounts,
    SampleRatio,
    TwoSample,
    clopper_pearson,
    effective_sample,
    holm,
    mcnemar,
    missing_n,
    non_inferiority_n,
    non_inferiority_p,
    p_above,
    p_below,
    rogan_gladen,
    wilson,
    zero_failure_n,
)


@pytest.mark.parametrize(("failures", "n"), [(0, 30), (1, 30), (3, 127), (30, 30), (499, 1000)])
def test_intervals_equal_those_of_scipy(failures: int, n: int) -> None:
    test = binomtest(failures, n)
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        theirs = test.proportion_ci(0.95, method=method)
        assert ours(failures, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_no_interval_has_width_zero() -> None:
    for n in (1, 2, 30, 1000):
        for failures in (0, n):
            assert clopper_pearson(failures, n).high > clopper_pearson(failures, n).low


def test_an_interval_of_nothing_says_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("failures", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(failures: int, n: int) -> None:
    with pytest.raises(ValueError, match="not possible"):
        clopper_pearson(failures, n)


def test_the_gate_and_the_bound_agree() -> None:
    for failures, n in ((0, 58), (0, 59), (5, 200), (10, 200), (30, 200)):
        bound = clopper_pearson(failures, n, confidence=0.90)
        for claim in (0.01, 0.05, 0.1):
            assert (bound.high <= claim) == (p_below(failures, n, claim) <= 0.05)
            assert (bound.low >= claim) == (p_above(failures, n, claim) <= 0.05)


def test_zero_failures_needed_are_those_of_the_rule_of_three() -> None:
    assert [zero_failure_n(claim) for claim in (0.05, 0.01, 0.001)] == [59, 299, 2995]
    assert zero_failure_n(0.01, alpha=0.05 / 12) == 546


def test_what_is_missing_is_exactly_enough() -> None:
    missing = missing_n(0, 100, 0.01)
    assert missing == 199
    assert p_below(0, 100 + missing, 0.01) <= 0.05 < p_below(0, 100 + missing - 1, 0.01)
    # 20 % where 5 % was claimed: some more units would show a failure.
    missing = missing_n(1, 5, 0.05)
    assert missing is not None
    assert p_above((5 + missing) / 5, 5 + missing, 0.05) <= 0.05
    assert missing_n(5, 100, 0.05) is None


def test_coverage_at_thirty_units_and_one_percent_is_what_it_says() -> None:
    intervals = {k: clopper_pearson(k, 30) for k in range(31)}
    covered = sum(
        math.comb(30, k) * 0.01**k * 0.99 ** (30 - k)
        for k, (low, high) in intervals.items()
        if low <= 0.01 <= high
    )
    assert 0.995 < covered < 0.999


def test_holm_equals_the_worked_example() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_mcnemar_equals_a_binomial_test_of_the_discordant_pairs() -> None:
    pairs = [(True, False)] * 9 + [(False, True)] * 2 + [(True, True)] * 5 + [(False, False)] * 84
    found = mcnemar(pairs)
    assert (found.only_candidate_failed, found.only_baseline_failed, found.n) == (9, 2, 100)
    assert found.p_worse == pytest.approx(binomtest(9, 11, 0.5, alternative="greater").pvalue)
    assert found.difference == pytest.approx(0.07)
    assert mcnemar([]).p_worse == 1.0


def test_detector_errors_are_taken_out_of_a_rate() -> None:
    assert rogan_gladen(0.2 * 0.9 + 0.8 * 0.05, 0.9, 0.95) == pytest.approx(0.2)
    assert rogan_gladen(0.01, 0.9, 0.95) == 0.0
    with pytest.raises(ValueError, match="tells nothing"):
        rogan_gladen(0.1, 0.375, 0.39)


def test_generations_of_one_prompt_count_as_what_they_tell() -> None:
    alone = effective_sample((str(i), i < 3) for i in range(60))
    assert (alone.n, alone.failures, alone.correlation) == (60, 3, 0.0)
    together = effective_sample((str(i), i < 12) for i in range(60) for _ in range(5))
    assert together.correlation == pytest.approx(1.0)
    assert together.n == pytest.approx(60) and together.failures == pytest.approx(12)
    few = effective_sample((str(i), i < 3) for i in range(60) for _ in range(5))
    assert few.correlation == 1.0 and few.n == pytest.approx(60)
    apart = random.Random(0)
    independent = effective_sample(
        (str(i), apart.random() < 0.3) for i in range(200) for _ in range(5)
    )
    assert independent.n > 850


def test_clustered_intervals_cover_where_naive_ones_do_not() -> None:
    """60 prompts of 5 generations, 5 %: a prompt fails as a whole nine times of ten."""
    rng = random.Random(1)
    ours = naive = 0
    for _ in range(400):
        outcomes = []
        for cluster in range(60):
            whole = rng.random() < 0.05
            outcomes += [
                (str(cluster), whole if rng.random() < 0.9 else rng.random() < 0.05)
                for _ in range(5)
            ]
        sample = effective_sample(outcomes)
        low, high = clopper_pearson(sample.failures, sample.n)
        ours += low <= 0.05 <= high
        low, high = clopper_pearson(sum(failed for _, failed in outcomes), 300)
        naive += low <= 0.05 <= high
    assert ours / 400 >= 0.95
    assert naive / 400 < 0.9


@pytest.mark.parametrize(
    ("rates", "blocks"), [((0.05, 0.05), (3, 7)), ((0.05, 0.2), (2, 5)), ((0.3, 0.3), (1, 4))]
)
def test_a_block_never_gains_on_average_while_the_canary_is_no_worse(
    rates: tuple[float, float], blocks: tuple[int, int]
) -> None:
    """The law that makes it an e-process, by summing over every outcome of the next block."""
    canary_rate, control_rate = rates
    before = TwoSample().update(ArmCounts(20, 3), ArmCounts(50, 2))
    expected = 0.0
    for k, m in itertools.product(range(blocks[0] + 1), range(blocks[1] + 1)):
        chance = _binomial(k, blocks[0], canary_rate) * _binomial(m, blocks[1], control_rate)
        after = before.update(ArmCounts(blocks[0], k), ArmCounts(blocks[1], m))
        expected += chance * math.exp(after.log_e - before.log_e)
    assert expected <= 1 + 1e-9


def _binomial(k: int, n: int, rate: float) -> float:
    return math.comb(n, k) * rate**k * (1 - rate) ** (n - k)


def _first_look_above(canary: float, control: float, rng: random.Random) -> int | None:
    """Canary units after which 20 is reached, in 500 blocks of 10 and 40."""
    test = TwoSample()
    for look in range(1, 501):
        k = sum(rng.random() < canary for _ in range(10))
        m = sum(rng.random() < control for _ in range(40))
        test = test.update(ArmCounts(10, k), ArmCounts(40, m))
        if test.log_e >= math.log(20):
            return look * 10
    return None


def test_a_canary_that_is_as_good_is_seldom_rolled_back() -> None:
    rng = random.Random(2)
    false = sum(_first_look_above(0.02, 0.02, rng) is not None for _ in range(200))
    assert false <= 10


def test_a_canary_that_is_worse_is_found_soon() -> None:
    rng = random.Random(3)
    found = sorted(_first_look_above(0.05, 0.02, rng) or 10**6 for _ in range(600))
    assert found[-6] < 10**6
    assert found[300] <= 300


def test_a_block_of_one_arm_only_tells_nothing() -> None:
    test = TwoSample().update(ArmCounts(10, 10), ArmCounts(0, 0))
    assert test.log_e == 0.0
    assert test.canary == ArmCounts(10, 10)


def test_a_broken_split_is_noticed_and_a_sound_one_is_not() -> None:
    rng = random.Random(4)
    alarms = 0
    for _ in range(200):
        ratio, alarmed = SampleRatio(), False
        for _ in range(100):
            canary = sum(rng.random() < 0.05 for _ in range(50))
            ratio = ratio.update(canary, 50 - canary)
            alarmed = alarmed or ratio.log_e(0.05) > math.log(1000)
        alarms += alarmed
    assert alarms <= 1
    assert SampleRatio(100, 900).log_e(0.05) > math.log(1000)


def test_a_canary_as_good_is_promoted_as_often_as_planned() -> None:
    """Size and power of the one look, by simulation at the planned n."""
    rng = random.Random(5)
    n = non_inferiority_n(0.02, 0.02, share=0.5)

    def promoted(canary: float) -> float:
        count = 0
        for _ in range(400):
            k = sum(rng.random() < canary for _ in range(n))
            m = sum(rng.random() < 0.02 for _ in range(n))
            count += non_inferiority_p(k, n, m, n, 0.02) <= 0.05
        return count / 400

    assert promoted(0.02) >= 0.75
    assert promoted(0.04) <= 0.08


def test_the_score_test_equals_the_published_example() -> None:
    """With a margin of 0 it is the usual pooled z test."""
    k, n, m, size = 12, 100, 20, 100
    pooled = (k + m) / (n + size)
    z = (k / n - m / size) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / size))
    assert non_inferiority_p(k, n, m, size, 1e-9) == pytest.approx(
        0.5 * math.erfc(-z / math.sqrt(2)), abs=1e-4
    )
