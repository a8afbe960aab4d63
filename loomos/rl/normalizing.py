"""Running scales of observations and rewards, as Stable-Baselines3's `VecNormalize` has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLIP = 10.0
EPSILON = 1e-8

Floats = NDArray[np.float64]


class RunningMoments:
    """Mean and variance of all rows so far (Chan et al. 1979, parallel algorithm)."""

    def __init__(self, size: int) -> None:
        self.mean = np.zeros(size)
        self.variance = np.ones(size)
        self.count = 1e-4

    def add(self, rows: NDArray[np.floating]) -> None:
        """Take in rows [N, D]."""
        count = len(rows)
        mean, variance = rows.mean(axis=0, dtype=np.float64), rows.var(axis=0, dtype=np.float64)
        away, total = mean - self.mean, self.count + count
        squares = self.variance * self.count + variance * count
        self.mean = self.mean + away * count / total
        self.variance = (squares + away**2 * self.count * count / total) / total
        self.count = total

    def state(self) -> Floats:
        """As one array: mean, variance, count."""
        return np.concatenate([self.mean, self.variance, [self.count]])

    def load(self, state: Floats) -> None:
        """Go on from what `state` gave."""
        size = len(self.mean)
        self.mean, self.variance = state[:size].copy(), state[size : 2 * size].copy()
        self.count = float(state[-1])


class ObservationScale:
    """Observations with mean 0 and deviation 1, within 10 deviations."""

    def __init__(self, size: int) -> None:
        self.moments = RunningMoments(size)

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale [N, D], without learning from it."""
        moments = self.moments
        scaled = (observations - moments.mean) / np.sqrt(moments.variance + EPSILON)
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)


class RewardScale:
    """Rewards divided by the deviation of the discounted return, within 10."""

    def __init__(self, count: int, gamma: float) -> None:
        self.moments = RunningMoments(1)
        self.returns = np.zeros(count)
        self._gamma = gamma

    def __call__(self, rewards: Floats, done: NDArray[np.bool_]) -> Floats:
        """Learn from the rewards [N] of a step, and scale them."""
        self.returns = self.returns * self._gamma + rewards
        self.moments.add(self.returns[:, None])
        scaled = np.clip(rewards / np.sqrt(self.moments.variance[0] + EPSILON), -CLIP, CLIP)
        self.returns[done] = 0.0
        return np.asarray(scaled)
