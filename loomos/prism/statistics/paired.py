"""Two models on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class PairedTest(NamedTuple):
    """What a comparison on the same units found."""

    only_candidate_failed: int
    """Units that the candidate fails and the baseline does not."""
    only_baseline_failed: int
    """Units that the baseline fails and the candidate does not."""
    n: int
    """Pairs."""
    p_worse: float
    """Chance of so many new failures if both were equally good: small means it is worse."""

    @property
    def difference(self) -> float:
        """Failure rate of the candidate less that of the baseline."""
        return (self.only_candidate_failed - self.only_baseline_failed) / self.n if self.n else 0.0


def mcnemar(pairs: Iterable[tuple[bool, bool]]) -> PairedTest:
    """McNemar's exact test, one-sided (Psychometrika 12:153, 1947).

    Args:
        pairs: per unit whether the candidate failed and whether the baseline failed.
    """
    worse = better = n = 0
    for candidate, baseline in pairs:
        n += 1
        worse += candidate and not baseline
        better += baseline and not candidate
    discordant = worse + better
    at_least = sum(math.comb(discordant, i) for i in range(worse, discordant + 1))
    return PairedTest(worse, better, n, at_least / 2**discordant)
