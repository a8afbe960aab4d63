"""The ladder of difficulty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loomos.rl.environments.config import LEVELS, CurriculumConfig


class Curriculum:
    """Raises the level by a rung whenever the newest episodes were solved often enough."""

    def __init__(self, config: CurriculumConfig, highest: float = 1.0) -> None:
        self._config = config
        self._highest = highest
        self.level = LEVELS[config.start_difficulty]
        self._newest: list[bool] = []

    def note(self, solved: bool) -> None:
        """An episode ended."""
        self._newest.append(solved)
        if len(self._newest) < self._config.window:
            return
        if sum(self._newest) >= self._config.success_threshold * len(self._newest):
            self.level = min(self._highest, self.level + self._config.progression_rate)
            self._newest = []
        else:
            del self._newest[0]

    def state(self) -> NDArray[np.float64]:
        """The level and the newest episodes, as `load` takes them."""
        return np.asarray([self.level, *map(float, self._newest)])

    def load(self, state: NDArray[np.float64]) -> None:
        """Go on from what `state` gave."""
        self.level = float(state[0])
        self._newest = [bool(solved) for solved in state[1:]]
