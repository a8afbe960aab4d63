"""When a trial is given up.

A trial's bars are fixed as it starts, from the results known then, and the trial judges itself by
them. So nobody is asked on the way, a retry after a crash decides as the first attempt did, and
who happens to be fast changes nothing. Given the same known trials, each decision is the one that
Optuna's pruner of that name would make.

Sources: asynchronous successive halving, Li et al. 2018 (arXiv:1810.05934); Hyperband, Li et al.
2018 (arXiv:1603.06560); the rules in detail as in Optuna 5 (`optuna.pruners`).
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Sequence

from loomos.jobs.experiments import TrialRecord, TrialState
from loomos.jobs.pruning import Bar, PruningRule
from loomos.manifest import ExperimentSpec, Pruner

LAST_RUNG = 10_000_000
"""No rung is past this step."""


class Judge:
    """Applies a rule to one trial's reports."""

    def __init__(self, rule: PruningRule | None) -> None:
        self._rule = rule
        self._best: float | None = None
        self._last_step = -1
        self.rungs = 0
        """Bars met or missed so far, where each is judged once."""

    def report(self, step: int, value: float) -> bool:
        """Take a report in, steps rising; says whether the trial should be given up."""
        rule = self._rule
        if rule is None:
            return False
        is_better = self._best is None or not _is_worse(value, self._best, rule.direction)
        self._best = value if is_better else self._best
        previous, self._last_step = self._last_step, step
        if rule.judges == "newest":
            return self._misses_a_rung(rule, step, value)
        if step < rule.warmup_steps:
            return False
        interval = rule.interval_steps
        due = (step - rule.warmup_steps) // interval * interval + rule.warmup_steps
        if previous >= due:
            return False
        bar = next((bar.value for bar in rule.bars if bar.step == step), None)
        assert self._best is not None
        return bar is not None and _is_worse(self._best, bar, rule.direction)

    def _misses_a_rung(self, rule: PruningRule, step: int, value: float) -> bool:
        while self.rungs < len(rule.bars) and step >= rule.bars[self.rungs].step:
            bar = rule.bars[self.rungs].value
            self.rungs += 1
            if bar is not None and _is_worse(value, bar, rule.direction):
                return True
        return False


def rule_for(spec: ExperimentSpec, number: int, known: Sequence[TrialRecord]) -> PruningRule | None:
    """The rule of trial `number`, given those that are known; None if nothing is ever pruned."""
    pruner = spec.pruner
    if pruner.name == "none":
        return None
    direction = spec.metrics[0].direction
    if pruner.name in ("median", "percentile"):
        return PruningRule(
            direction=direction,
            judges="best",
            bars=_percentile_bars(pruner, direction, known),
            warmup_steps=pruner.warmup_steps,
            interval_steps=pruner.interval_steps,
        )
    bracket = 0
    if pruner.name == "hyperband":
        bracket = bracket_of(pruner, spec.seed, number)
        known = [t for t in known if bracket_of(pruner, spec.seed, t.number) == bracket]
    return PruningRule(
        direction=direction, judges="newest", bars=_rungs(pruner, bracket, direction, known)
    )


def bracket_of(pruner: Pruner, seed: int, number: int) -> int:
    """The bracket of Hyperband that a trial is in: by hash, in proportion to their budgets."""
    assert pruner.max_resource is not None
    factor = pruner.reduction_factor
    count = math.floor(math.log(pruner.max_resource / pruner.min_resource, factor)) + 1
    budgets = [math.ceil(count * factor**s / (s + 1)) for s in reversed(range(count))]
    place = binascii.crc32(f"{study_name(seed)}_{number}".encode()) % sum(budgets)
    for bracket, budget in enumerate(budgets):
        place -= budget
        if place < 0:
            return bracket
    raise AssertionError("budgets sum up")


def study_name(seed: int) -> str:
    """What an experiment's study is called; it has a part in Hyperband's brackets."""
    return f"seed-{seed}"


def _rungs(pruner: Pruner, bracket: int, direction: str, known: Sequence[TrialRecord]) -> list[Bar]:
    factor = pruner.reduction_factor
    bars: list[Bar] = []
    step = pruner.min_resource * factor**bracket
    while step <= LAST_RUNG:
        rivals = sorted(
            (
                next(value for at, value in trial.reports if at >= step)
                for trial in known
                if trial.rungs > len(bars)
            ),
            reverse=direction == "maximize",
        )
        place = max((len(rivals) + 1) // factor - 1, 0)
        bars.append(Bar(step=step, value=rivals[place] if place < len(rivals) else None))
        step *= factor
    return bars


def _percentile_bars(pruner: Pruner, direction: str, known: Sequence[TrialRecord]) -> list[Bar]:
    whole = [trial for trial in known if trial.state == TrialState.COMPLETED]
    if len(whole) < max(1, pruner.startup_trials):
        return []
    share = 50.0 if pruner.name == "median" else pruner.percentile
    share = 100 - share if direction == "maximize" else share
    at: dict[int, list[float]] = {}
    for trial in whole:
        for step, value in trial.reports:
            at.setdefault(step, []).append(value)
    return [Bar(step=step, value=_percentile(at[step], share)) for step in sorted(at)]


def _percentile(values: list[float], share: float) -> float:
    """Linear interpolation between closest ranks, as `numpy.percentile` does."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * (share / 100)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    part, span = place - low, ordered[high] - ordered[low]
    return ordered[high] - span * (1 - part) if part >= 0.5 else ordered[low] + span * part


def _is_worse(value: float, other: float, direction: str) -> bool:
    return value > other if direction == "minimize" else value < other
