"""Experiments: spaces, sampling, pruning, populations.

Example:
    >>> from loomos.weaver import Trial
    >>> def objective(trial: Trial) -> float:
    ...     return (trial.params["x"] - 2) ** 2
"""

from __future__ import annotations

from loomos.weaver.trial import Trial, TrialPruned

__all__ = ["Trial", "TrialPruned"]
