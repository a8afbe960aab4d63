"""Threads of rewards, made one advantage: a sum, the worst first, or constraints."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from loomos.manifest import WeaveConfig
from loomos.rl.rollouts import Rollout

AUGMENTATION = 0.05
"""Part of the plain sum in the Chebyshev weights (augmented scalarisation, Steuer & Choo 1983)."""
RHO = 0.01
"""Likewise in the utility: small, so that it excludes no best trade, and only breaks ties."""


class Scalarizer:
    """Weights of the threads, which may change as the policy learns.

    Each thread's advantages are divided by their root mean square first, so that weights mean the
    same whatever the units of rewards.

    `chebyshev` puts weight on the threads whose return is farthest from the best seen, relative to
    the range seen (SER: the scalarisation is of expected returns). Applied to the advantage of
    single steps it is a heuristic: the gradient is that of the weighted sum at the present point.
    `lagrangian` raises a thread's multiplier while its mean return is below its threshold and
    lowers it above, never below zero (dual ascent; Tessler et al. 2019, arXiv:1805.11074).
    `utility` rewards with the change of u(R), R the returns of the episode so far, which sums up to
    the utility of the episode (ESR: the scalarisation is of each episode's returns):

        u(R) = -max_h w_h d_h - rho sum_h w_h d_h,    d_h = (ideal_h - R_h) / (ideal_h - worst_h)

    the augmented Chebyshev utility, whose maxima are all best trades, also those in the dents of a
    front that no weighted sum reaches.
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
        if config.scalarization == "utility":  # the first stream carries it all
            self.weights = np.eye(count)[0]

    def rewards(self, rollout: Rollout) -> Tensor:
        """The rewards [T, N, H] that the threads are to maximise."""
        if self._config.scalarization != "utility":
            return rollout.rewards
        given = rollout.rewards
        accrued = torch.zeros_like(given[0]) if rollout.accrued is None else rollout.accrued
        if accrued.shape != given[0].shape:  # before the first step of all
            accrued = torch.zeros_like(given[0])
        over = (rollout.terminated | rollout.truncated).unsqueeze(-1)
        changes = torch.zeros_like(given)
        for step, reward in enumerate(given):
            after = accrued + reward
            changes[step, :, 0] = self.utility(after) - self.utility(accrued)
            accrued = torch.where(over[step], 0.0, after)
        return changes

    def utility(self, returns: Tensor) -> Tensor:
        """U of returns [..., H]."""
        wanted, ideal, worst = (
            torch.as_tensor(values, dtype=returns.dtype)
            for values in (self._wanted, self._config.ideal, self._config.worst)
        )
        short = wanted * (ideal - returns) / (ideal - worst)
        return -short.amax(-1) - RHO * short.sum(-1)

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
