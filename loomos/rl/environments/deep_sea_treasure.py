"""Deep sea treasure: the deeper the richer, and each step costs time.

The two-objective task of Vamplew et al. 2011 ("Empirical evaluation methods for multiobjective
reinforcement learning algorithms", Machine Learning 84). Its ten best trades are known, and most of
them lie in the dents of the front, where no weighted sum of the objectives has its maximum.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

TREASURES: dict[tuple[int, int], float] = {
    (1, 0): 1,
    (2, 1): 2,
    (3, 2): 3,
    (4, 3): 5,
    (4, 4): 8,
    (4, 5): 16,
    (7, 6): 24,
    (7, 7): 50,
    (9, 8): 74,
    (10, 9): 124,
}
"""Value by row and column; the sea's floor is below each."""
ROWS, COLUMNS = 11, 10
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right."""
FRONT = [(value, -float(row + column)) for (row, column), value in TREASURES.items()]
"""(treasure, minus the steps) of the best trades; a treasure lies as many steps away as its row and
column."""


class DeepSeaTreasure(gymnasium.Env[NDArray[np.float32], np.int64]):
    """`loomos/DeepSeaTreasure-v0`; rewards are (treasure, -1), an observation is 110 cells."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (ROWS * COLUMNS,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.reward_space = gymnasium.spaces.Box(
            np.array([0, -1], np.float32), np.array([124, -1], np.float32)
        )
        self._floor = {column: row for row, column in TREASURES}
        self._at = (0, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin at the surface, at the shore."""
        super().reset(seed=seed)
        self._at = (0, 0)
        return self._observe(), {}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], bool, bool, dict[str, Any]]:
        """Go a step, unless the sea ends there; a treasure ends the dive."""
        down, aside = MOVES[int(action)]
        row, column = self._at[0] + down, self._at[1] + aside
        if 0 <= column < COLUMNS and 0 <= row <= self._floor[column]:
            self._at = (row, column)
        treasure = TREASURES.get(self._at, 0.0)
        return self._observe(), np.asarray([treasure, -1.0]), treasure > 0, False, {}

    def _observe(self) -> NDArray[np.float32]:
        seen = np.zeros((ROWS, COLUMNS), np.float32)
        seen[self._at] = 1
        return seen.reshape(-1)
