"""How many units a question needs, and the one look that promotes a canary."""

from __future__ import annotations

import math
from statistics import NormalDist

from loomos.prism.statistics.intervals import p_above, p_below

MOST_UNITS = 10_000_000


def zero_failure_n(claim: float, alpha: float = 0.05) -> int:
    """Units without one failure that show a rate of at most `claim`; 299 for 1 % at 95 %."""
    return math.ceil(math.log(alpha) / math.log1p(-claim))


def missing_n(failures: float, n: float, claim: float, alpha: float = 0.05) -> int | None:
    """Units still to look at until a verdict, if the failure rate stays what it is.

    Returns:
        At least 1; None if the rate is so near the claim that no sample would tell.
    """
    rate = failures / n if n else 0.0
    tail = p_below if rate < claim else p_above

    def decides(total: int) -> bool:
        return tail(rate * total, total, claim) <= alpha

    high = max(1, math.ceil(n))
    while not decides(high):
        high *= 2
        if high > MOST_UNITS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return max(1, high - math.floor(n))


def non_inferiority_n(
    rate: float, margin: float, share: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Canary units for one look that promotes a canary as good as its control.

    Args:
        rate: failure rate of both.
        margin: how much higher a rate is still acceptable, absolute.
        share: part of all units that the canary gets, in (0, 1).
        alpha: chance to promote one that is worse by the margin.
        power: chance to promote one that is as good.
    """
    normal, ratio = NormalDist(), (1 - share) / share
    restricted = _restricted_canary_rate(rate, rate, ratio, margin)

    def deviation(canary: float, control: float) -> float:
        """Of the difference, times the root of n."""
        return math.sqrt(max(canary * (1 - canary) + control * (1 - control) / ratio, 1e-4))

    wanted = normal.inv_cdf(1 - alpha) * deviation(restricted, restricted - margin)
    wanted += normal.inv_cdf(power) * deviation(rate, rate)
    return math.ceil((wanted / margin) ** 2)


def non_inferiority_p(
    canary_failures: int, canary_n: int, control_failures: int, control_n: int, margin: float
) -> float:
    """p-value of "the canary's rate exceeds the control's by `margin`": small promotes.

    The score test of Farrington and Manning (Stat. Med. 9:1447, 1990), which holds its size when
    there are few failures.
    """
    if canary_n == 0 or control_n == 0:
        return 1.0
    canary, control = canary_failures / canary_n, control_failures / control_n
    restricted = _restricted_canary_rate(canary, control, control_n / canary_n, margin)
    base = restricted - margin
    variance = restricted * (1 - restricted) / canary_n + base * (1 - base) / control_n
    if variance <= 0:
        return 0.0 if canary - control < margin else 1.0
    return NormalDist().cdf((canary - control - margin) / math.sqrt(variance))


def _restricted_canary_rate(canary: float, control: float, ratio: float, margin: float) -> float:
    """Most likely canary rate given that it exceeds the control's by exactly `margin`."""
    a = 1 + ratio
    b = -(1 + ratio + canary + ratio * control + margin * (ratio + 2))
    c = margin * margin + margin * (2 * canary + ratio + 1) + canary + ratio * control
    d = -canary * margin * (1 + margin)
    v = b**3 / (3 * a) ** 3 - b * c / (6 * a * a) + d / (2 * a)
    u = math.copysign(math.sqrt(max(0.0, b * b / (3 * a) ** 2 - c / (3 * a))), v)
    angle = 0.0 if u == 0 else math.acos(max(-1.0, min(1.0, v / u**3)))
    root = 2 * u * math.cos((math.pi + angle) / 3) - b / (3 * a)
    return min(1.0, max(margin, root))
