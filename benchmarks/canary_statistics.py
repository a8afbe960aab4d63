"""Do gates and canaries err as seldom as they say? 2,000 seeded simulations a row.

Intervals are held against Student's t, which inspect_ai uses, and a percentile bootstrap, which
garak uses; canary rules against a fixed threshold per window, as Argo Rollouts has it, and a z test
at every look. Goals: coverage >= 95 % at n = 30 and a rate of 1 %; A/A false rollback <= 5 % at
100 looks; 2 % against 5 % found in >= 99 %, at a median of <= 300 canary units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import t as student

from loomos.prism.statistics import ArmCounts, TwoSample, clopper_pearson, effective_sample, wilson

NEEDS_STACK = False
SIMULATIONS, LOOKS = 2000, 100
CANARY, CONTROL = 50, 200
"""Units of a look."""
BLOCKS = 5
"""Blocks that a look's units come in, as the judge makes them of ten canary units each."""

SUITES = [(30, 0.01), (127, 0.01), (500, 0.01), (1000, 0.002)]
RATES = [(0.02, 0.02), (0.04, 0.04), (0.3, 0.3), (0.03, 0.02), (0.05, 0.02), (0.1, 0.02)]


def coverage(rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often 95 % intervals hold the true rate."""
    rows: list[dict[str, Any]] = []
    for n, rate in SUITES:
        counts = rng.binomial(n, rate, SIMULATIONS)
        found = {name: 0 for name in ("clopper_pearson", "wilson", "student_t", "bootstrap")}
        for count in counts:
            k = int(count)
            intervals = {
                "clopper_pearson": clopper_pearson(k, n),
                "wilson": wilson(k, n),
                "student_t": _student(k, n),
                "bootstrap": tuple(np.quantile(rng.binomial(n, k / n, 1000) / n, (0.025, 0.975))),
            }
            for name, (low, high) in intervals.items():
                found[name] += low <= rate <= high
        shares = {name: round(count / SIMULATIONS, 4) for name, count in found.items()}
        rows.append({"n": n, "rate": rate, **shares})
    return rows


def _student(k: int, n: int) -> tuple[float, float]:
    rate = k / n
    error = math.sqrt(rate * (1 - rate) / (n - 1))
    half = float(student.ppf(0.975, n - 1)) * error
    return rate - half, rate + half


def clustered_coverage(rng: np.random.Generator) -> dict[str, float]:
    """60 prompts of 5 generations that fail together, true rate 5 %."""
    ours = naive = 0
    for _ in range(SIMULATIONS):
        chances = rng.beta(0.05 * 2, 0.95 * 2, 60)
        hits = rng.binomial(5, chances)
        sample = effective_sample((str(i), g < hits[i]) for i in range(60) for g in range(5))
        low, high = clopper_pearson(sample.failures, sample.n)
        ours += low <= 0.05 <= high
        low, high = clopper_pearson(int(hits.sum()), 300)
        naive += low <= 0.05 <= high
    return {"clustered": ours / SIMULATIONS, "as_if_independent": naive / SIMULATIONS}


def canaries(rng: np.random.Generator) -> list[dict[str, Any]]:
    """How often, and when, each rule rolls back."""
    rows: list[dict[str, Any]] = []
    for canary, control in RATES:
        rules = {"e_process": _e_process, "fixed_threshold": _fixed, "z_at_every_look": _z}
        k = rng.binomial(CANARY // BLOCKS, canary, (SIMULATIONS, LOOKS * BLOCKS))
        m = rng.binomial(CONTROL // BLOCKS, control, (SIMULATIONS, LOOKS * BLOCKS))
        row: dict[str, Any] = {"canary": canary, "control": control}
        for name, rule in rules.items():
            units = [rule(k[i], m[i], control) for i in range(SIMULATIONS)]
            stopped = [u for u in units if u is not None]
            row[name] = round(len(stopped) / SIMULATIONS, 4)
            row[f"{name}_median_n"] = int(np.median(stopped)) if stopped else None
        rows.append(row)
    return rows


def _e_process(k: Any, m: Any, control: float) -> int | None:
    test = TwoSample()
    for block in range(len(k)):
        test = test.update(
            ArmCounts(CANARY // BLOCKS, int(k[block])), ArmCounts(CONTROL // BLOCKS, int(m[block]))
        )
        if test.log_e >= math.log(20):
            return (block + 1) * CANARY // BLOCKS
    return None


def _fixed(k: Any, m: Any, control: float) -> int | None:
    """Argo's way: a window fails above a threshold near the usual rate; three failures end it."""
    limit, failures = math.ceil(2 * control * CANARY), 0
    windows = k.reshape(LOOKS, BLOCKS).sum(1)
    for look in range(LOOKS):
        failures += windows[look] > limit
        if failures >= 3:
            return (look + 1) * CANARY
    return None


def _z(k: Any, m: Any, control: float) -> int | None:
    a, b = np.cumsum(k.reshape(LOOKS, BLOCKS).sum(1)), np.cumsum(m.reshape(LOOKS, BLOCKS).sum(1))
    for look in range(LOOKS):
        n, size = CANARY * (look + 1), CONTROL * (look + 1)
        pooled = (a[look] + b[look]) / (n + size)
        error = math.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / n + 1 / size))
        if (a[look] / n - b[look] / size) / error > 1.645:
            return n
    return None


async def measure(stack: None) -> dict[str, Any]:
    """Simulate; print a row each."""
    rng = np.random.default_rng(20260101)
    intervals = coverage(rng)
    clusters = clustered_coverage(rng)
    rules = canaries(rng)
    for row in (*intervals, clusters, *rules):
        print("   ", row, flush=True)
    worst = min(intervals, key=lambda row: row["clopper_pearson"])
    equal = [row for row in rules if row["canary"] == row["control"]]
    found = next(row for row in rules if (row["canary"], row["control"]) == (0.05, 0.02))
    return {
        "simulations": SIMULATIONS,
        "coverage_n30_1pct": intervals[0]["clopper_pearson"],
        "coverage_n30_1pct_student_t": intervals[0]["student_t"],
        "ratio": round(intervals[0]["clopper_pearson"] / intervals[0]["student_t"], 2),
        "worst_coverage": worst["clopper_pearson"],
        "clustered_coverage": clusters["clustered"],
        "false_rollback": max(row["e_process"] for row in equal),
        "false_rollback_fixed_threshold": max(row["fixed_threshold"] for row in equal),
        "found_2_vs_5": found["e_process"],
        "found_2_vs_5_median_n": found["e_process_median_n"],
    }
