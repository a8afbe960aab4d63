"""Threads of rewards, made one advantage: a sum, the worst first, or constraints."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from loomos.manifest import WeaveConfig

AUGMENTATION = 0.05
"""Part of the plain sum in the Chebyshev weights (augmented scalarisation, Steuer & Choo 1983)."""


class Scalarizer:
    """Weights of the threads, which may change as the policy learns.

    Each thread's advantages are divided by their root mean square first, so that weights mean the
    same whatever the units of rewards.

    `chebyshev` puts weight on the threads whose return is farthest from the best seen, relative to
    the range seen (SER: the scalarisation is of expected returns). Applied to the advantage of
    single steps it is a heuristic: the gradient is that of the weighted sum at the present point.
    `lagrangian` raises a thread's multiplier while its mean return is below its threshold and
    lowers it above, never below zero (dual ascent; Tessler et al. 2019, arXiv:1805.11074).
    """

    def __init__(self, config: WeaveConfig) -> None:
        self._config = config
        count = len(config.reward_threads)
        weights = np.asarray(config.thread_weights or [1.0] * count, np.float64)
        self._wanted = weights / weights.sum()
        self.weights = self._wanted.copy()
        self._best = np.full(count, -np.inf)
        self._worst = np.full(count, np.inf)
        self._multipliers = np.zeros(max(0, count - 1))

    def combine(self, advantages: Tensor) -> Tensor:
        """One advantage [T, N] of those of the threads [T, N, H]."""
        if advantages.shape[-1] == 1:
            return advantages.sum(-1)
        size = advantages.square().mean(dim=(0, 1)).sqrt().clamp(min=1e-6)
        weights = torch.from_numpy(self.weights).to(advantages.dtype)
        return (advantages / size * weights).sum(-1)

    def learn(self, returns: np.ndarray) -> None:
        """Adapt to the mean returns [H] of the newest episodes."""
        config = self._config
        self._best = np.maximum(self._best, returns)
        self._worst = np.minimum(self._worst, returns)
        if config.scalarization == "chebyshev":
            span = np.maximum(self._best - self._worst, 1e-6)
            short = self._wanted * (self._best - returns) / span
            first = (short >= short.max() - 1e-9).astype(np.float64)
            mixed = first * self._wanted + AUGMENTATION * self._wanted
            self.weights = mixed / mixed.sum()
        elif config.scalarization == "lagrangian":
            short = np.asarray(config.thresholds) - returns[1:]
            scale = np.maximum(np.abs(config.thresholds), 1.0)
            raised = self._multipliers + config.dual_learning_rate * short / scale
            self._multipliers = np.maximum(0.0, raised)
            mixed = np.concatenate([[1.0], self._multipliers])
            self.weights = mixed / mixed.sum()

    def state(self) -> np.ndarray:
        """What `load` needs."""
        return np.concatenate([self.weights, self._best, self._worst, self._multipliers])

    def load(self, state: np.ndarray) -> None:
        """Go on from what `state` gave."""
        count = len(self.weights)
        parts = np.split(state, [count, 2 * count, 3 * count])
        self.weights, self._best, self._worst, self._multipliers = (p.copy() for p in parts)
