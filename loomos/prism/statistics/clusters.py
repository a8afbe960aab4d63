"""How much independent data is in clustered data.

Several generations of one prompt, or prompts cut from one template, fail together. Counting them
as independent makes intervals too narrow: 74 % coverage where 95 % was meant, for 60 prompts of 5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

FEWEST_FAILED_CLUSTERS = 10
"""With fewer clusters that failed, the correlation cannot be estimated and is taken as 1."""


class EffectiveSample(NamedTuple):
    """As much as that many independent units would tell."""

    failures: float
    """Failures, scaled like `n`."""
    n: float
    """Effective units: between the number of clusters and that of units."""
    units: int
    """Units looked at."""
    clusters: int
    """Clusters they came from."""
    correlation: float
    """Correlation within a cluster that was assumed or found."""


def effective_sample(outcomes: Iterable[tuple[str, bool]]) -> EffectiveSample:
    """Scale failures and n by the design effect (Kish, Survey Sampling, 1965).

    The correlation is the analysis-of-variance estimate (Ridout et al., Biometrics 55:137, 1999).

    Args:
        outcomes: per unit its cluster and whether it failed.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for cluster, failed in outcomes:
        groups[cluster].append(failed)
    sizes = [len(group) for group in groups.values()]
    hits = [sum(group) for group in groups.values()]
    units, clusters, failures = sum(sizes), len(sizes), sum(hits)
    if units == clusters:
        return EffectiveSample(failures, units, units, clusters, 0.0)
    correlation = 1.0
    if sum(1 for hit in hits if hit) >= FEWEST_FAILED_CLUSTERS:
        correlation = _anova_correlation(sizes, hits)
    weighted_size = sum(size * size for size in sizes) / units
    effect = 1 + (weighted_size - 1) * correlation
    return EffectiveSample(failures / effect, units / effect, units, clusters, correlation)


def _anova_correlation(sizes: list[int], hits: list[int]) -> float:
    units, clusters, failures = sum(sizes), len(sizes), sum(hits)
    rate = failures / units
    between = sum(n * (k / n - rate) ** 2 for n, k in zip(sizes, hits, strict=True))
    within = sum(k * (1 - k / n) for n, k in zip(sizes, hits, strict=True))
    mean_between, mean_within = between / (clusters - 1), within / (units - clusters)
    usual_size = (units - sum(n * n for n in sizes) / units) / (clusters - 1)
    spread = mean_between + (usual_size - 1) * mean_within
    if spread <= 0:
        return 1.0
    return min(1.0, max(0.0, (mean_between - mean_within) / spread))
