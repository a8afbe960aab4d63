"""DeepSea: treasure at the end of one path among 2^N, for measuring deep exploration.

The environment of bsuite (Osband et al. 2020, arXiv:1908.03568): an N by N grid, a diver who sinks
a row a step and goes left or right; right costs 0.01 / N, the lower right corner is worth 1. Which
action is right differs from cell to cell, by a seed, so that no habit finds the path.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray


class DeepSea(gymnasium.Env[NDArray[np.float32], np.int64]):
    """`loomos/DeepSea-v0`; an observation is N * N zeros and a one."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, size: int = 10, mapping_seed: int = 0) -> None:
        self.size = size
        self.observation_space = gymnasium.spaces.Box(0, 1, (size * size,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        random = np.random.default_rng(mapping_seed)
        self._right = random.integers(2, size=(size, size))
        self._row = self._column = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin at the upper left."""
        super().reset(seed=seed)
        self._row = self._column = 0
        return self._observe(), {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Sink a row."""
        goes_right = int(action) == self._right[self._row, self._column]
        reward = -0.01 / self.size if goes_right else 0.0
        if goes_right and self._column == self._row == self.size - 1:
            reward += 1.0
        self._column = min(max(self._column + (1 if goes_right else -1), 0), self.size - 1)
        self._row += 1
        over = self._row == self.size
        return self._observe(), reward, over, False, {"is_correct": reward > 0.5}

    def _observe(self) -> NDArray[np.float32]:
        seen = np.zeros((self.size, self.size), np.float32)
        if self._row < self.size:
            seen[self._row, self._column] = 1
        return seen.reshape(-1)

    def solution(self) -> list[int]:
        """The way to the treasure."""
        return [int(self._right[n, n]) for n in range(self.size)]
