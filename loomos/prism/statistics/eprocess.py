"""Tests that may be looked at after every unit.

An e-process starts at 1 and, as long as the null hypothesis holds, exceeds 1/alpha at any time
with a chance of at most alpha (Ville 1939). So a canary may be watched continuously, and rolled
back the moment the evidence is there, at an error rate one can quote.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

LIFTS = (2.0, 3.0, 6.0)
"""Bets besides the plug-in one: the canary's rate is so many times the control's."""
PRIOR_UNITS, PRIOR_FAILURES = 20.0, 0.4
"""What is assumed of the control before anything is seen, so that the first bets are sane."""
PLUG_IN_UNITS = 4.0
"""Weight, in units, with which the pooled rate draws the plug-in estimate towards it."""
HIGHEST_RATE = 0.95


class ArmCounts(NamedTuple):
    """Units of one arm."""

    n: int
    """Units."""
    failures: int
    """Of them with an event."""


class TwoSample(NamedTuple):
    """Evidence that the canary's rate exceeds the control's.

    The e-process for two Bernoulli streams of Turner, Ly and Grünwald (J. Stat. Plan. Inference
    230:106116, 2024; arXiv:2106.02693): each block of units is bet on with rates that the blocks
    before it suggest. Four bets share the stake: one on the canary's own estimated rate, and one
    on each of `LIFTS` times the control's; their mean is an e-process again. Every bet is on a
    canary that is worse, so that the null "no worse" is covered, not only "equal".
    """

    canary: ArmCounts = ArmCounts(0, 0)
    """Units of the canary so far."""
    control: ArmCounts = ArmCounts(0, 0)
    """Units of the control so far."""
    log_bets: tuple[float, ...] = (0.0,) * (len(LIFTS) + 1)
    """Natural logarithm of what each bet has become."""

    @property
    def log_e(self) -> float:
        """Natural logarithm of the evidence; roll back when it reaches log(1/alpha)."""
        return _log_mean(self.log_bets)

    def update(self, canary: ArmCounts, control: ArmCounts) -> Self:
        """Take in a block: units that came since the last one, of both arms.

        Small blocks learn sooner. One with units of a single arm only tells nothing; it is
        remembered for later bets.
        """
        bets = self.log_bets
        if canary.n and control.n:
            low = (self.control.failures + PRIOR_FAILURES) / (self.control.n + PRIOR_UNITS)
            bets = tuple(
                bet + _gain(canary, control, min(HIGHEST_RATE, max(high, low)), low)
                for bet, high in zip(self.log_bets, self._canary_rates(low), strict=True)
            )
        return type(self)(
            canary=ArmCounts(self.canary.n + canary.n, self.canary.failures + canary.failures),
            control=ArmCounts(self.control.n + control.n, self.control.failures + control.failures),
            log_bets=bets,
        )

    def _canary_rates(self, low: float) -> tuple[float, ...]:
        failures = self.canary.failures + self.control.failures
        pooled = (failures + PRIOR_FAILURES) / (self.canary.n + self.control.n + PRIOR_UNITS)
        plug_in = (self.canary.failures + PLUG_IN_UNITS * pooled) / (self.canary.n + PLUG_IN_UNITS)
        return (plug_in, *(low * lift for lift in LIFTS))


def _gain(canary: ArmCounts, control: ArmCounts, high: float, low: float) -> float:
    """Logarithm of what a block multiplies a bet on the rates `high` and `low` by."""
    if high <= low:
        return 0.0
    null = (canary.n * high + control.n * low) / (canary.n + control.n)
    return _log_ratio(canary, high, null) + _log_ratio(control, low, null)


def _log_ratio(arm: ArmCounts, rate: float, null: float) -> float:
    return arm.failures * math.log(rate / null) + (arm.n - arm.failures) * math.log(
        (1 - rate) / (1 - null)
    )


class OneSample(NamedTuple):
    """Evidence that a rate exceeds a known one: the same bets, where no control runs beside."""

    arm: ArmCounts = ArmCounts(0, 0)
    """Units so far."""
    log_bets: tuple[float, ...] = (0.0,) * (len(LIFTS) + 1)
    """Natural logarithm of what each bet has become."""

    @property
    def log_e(self) -> float:
        """Natural logarithm of the evidence."""
        return _log_mean(self.log_bets)

    def update(self, block: ArmCounts, null: float) -> Self:
        """Take in a block of units.

        Args:
            block: units that came since the last one.
            null: the rate that is still acceptable, in (0, 1).
        """
        plug_in = (self.arm.failures + PLUG_IN_UNITS * null) / (self.arm.n + PLUG_IN_UNITS)
        rates = (max(plug_in, null), *(null * lift for lift in LIFTS))
        bets = tuple(
            bet + _log_ratio(block, min(max(HIGHEST_RATE, null), rate), null)
            for bet, rate in zip(self.log_bets, rates, strict=True)
        )
        arm = ArmCounts(self.arm.n + block.n, self.arm.failures + block.failures)
        return type(self)(arm, bets)


def _log_mean(logs: tuple[float, ...]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))


class SampleRatio(NamedTuple):
    """Evidence that units reach the canary in another share than the route row says.

    Sequential test of multinomial counts with a Dirichlet mixture (Lindon and Malek,
    arXiv:2011.03567). A mismatch means that the split or the counting is broken, and that no
    comparison can be trusted.
    """

    canary: int = 0
    """Units that reached the canary."""
    control: int = 0
    """Units that reached the control."""

    def update(self, canary: int, control: int) -> Self:
        """Take in more units."""
        return type(self)(self.canary + canary, self.control + control)

    def log_e(self, share: float, concentration: float = 1000.0) -> float:
        """Natural logarithm of the evidence that the share is not `share`.

        Args:
            share: the canary's declared share, in (0, 1).
            concentration: how near to `share` the alternatives lie that are looked for.
        """
        a, b = concentration * share, concentration * (1 - share)
        seen = _log_beta(a + self.canary, b + self.control) - _log_beta(a, b)
        declared = self.canary * math.log(share) + self.control * math.log1p(-share)
        return seen - declared


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
