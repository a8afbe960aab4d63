"""Intervals for a rate, and how surprising a count would be under a claimed one.

Counts may be fractions: an effective sample of clustered data is one. Binomial tails are
incomplete beta functions, which are defined for those too.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A rate between two bounds."""

    low: float
    """Lower bound, in 0..1."""
    high: float
    """Upper bound, in 0..1; above `low`."""


def clopper_pearson(failures: float, n: float, confidence: float = 0.95) -> Interval:
    """The exact interval of Clopper and Pearson (Biometrika 26:404, 1934).

    Covers the true rate at least as often as it says, whatever n and the rate are.

    Args:
        failures: events seen, 0..n.
        n: units looked at; 0 gives (0, 1).
        confidence: two-sided, such as 0.95.
    """
    from scipy.special import betaincinv

    _check(failures, n)
    tail = (1 - confidence) / 2
    low = float(betaincinv(failures, n - failures + 1, tail)) if failures > 0 else 0.0
    high = float(betaincinv(failures + 1, n - failures, 1 - tail)) if failures < n else 1.0
    return Interval(low, high)


def wilson(failures: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval (J. Am. Stat. Assoc. 22:209, 1927): narrower, for display only."""
    _check(failures, n)
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = failures / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def p_below(failures: float, n: float, claim: float) -> float:
    """Chance of so few failures if the rate were `claim`: small means it is below.

    The one-sided upper bound of `clopper_pearson` is at most `claim` exactly if this is at most
    1 - confidence.
    """
    from scipy.special import betainc

    _check(failures, n)
    if failures >= n:
        return 1.0
    return float(betainc(n - failures, failures + 1, 1 - claim))


def p_above(failures: float, n: float, claim: float) -> float:
    """Chance of so many failures if the rate were `claim`: small means it is above."""
    from scipy.special import betainc

    _check(failures, n)
    if failures <= 0:
        return 1.0
    return float(betainc(failures, n - failures + 1, claim))


def rogan_gladen(rate: float, sensitivity: float, specificity: float) -> float:
    """The true rate behind one that an imperfect detector saw (Am. J. Epidemiol. 107:71, 1978).

    Args:
        rate: share that the detector flags.
        sensitivity: share of true cases that it flags.
        specificity: share of others that it leaves alone.

    Returns:
        The corrected rate, held within 0..1.

    Raises:
        ValueError: the detector tells nothing (sensitivity + specificity is at most 1).
    """
    informative = sensitivity + specificity - 1
    if informative <= 0:
        raise ValueError("a detector with sensitivity + specificity <= 1 tells nothing")
    return min(1.0, max(0.0, (rate + specificity - 1) / informative))


def _check(failures: float, n: float) -> None:
    if not 0 <= failures <= n:
        raise ValueError(f"{failures} failures of {n} is not possible")
