"""Several threads of rewards from an environment that gives one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from loomos.manifest import RewardThread
from loomos.rl.pool import Make

HARM = ("escape", "illegal", "error")
"""Facts of a step that count against safety."""


class ThreadRewards(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Rewards [H] in the order of `threads`.

    `task_completion` is the environment's own reward. `efficiency` is minus a share of the longest
    episode at each step. `safety` is minus 1 at a step that the environment calls an escape,
    illegal or an error, and what it scores at the end; `coherence` and `creativity` are what it
    scores at the end, 0 where it scores nothing (`info["threads"]`).
    """

    def __init__(self, environment: gymnasium.Env[Any, Any], threads: list[RewardThread]) -> None:
        super().__init__(environment)
        self._threads = threads
        config = getattr(environment.unwrapped, "config", None)
        spec = environment.spec
        longest = getattr(config, "max_steps", None) or (spec and spec.max_episode_steps)
        self._longest = float(longest or 1000)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See base class; the reward is an array [H]."""
        observation, reward, over, cut, info = self.env.step(action)
        return observation, self._rewards(float(reward), over, info), over, cut, info

    def _rewards(self, reward: float, over: bool, info: dict[str, Any]) -> NDArray[np.float64]:
        scored = info.get("threads", {}) if over else {}
        found = {
            RewardThread.TASK_COMPLETION: reward,
            RewardThread.EFFICIENCY: -1 / self._longest,
            RewardThread.SAFETY: scored.get("safety", 0.0) - any(name in info for name in HARM),
            RewardThread.COHERENCE: scored.get("coherence", 0.0),
            RewardThread.CREATIVITY: scored.get("creativity", 0.0),
        }
        return np.asarray([found[thread] for thread in self._threads], np.float64)


def with_threads(make: Make, threads: list[RewardThread]) -> Make:
    """What makes environments with rewards of these threads; one thread is the reward itself.

    An environment whose reward is a vector (as `reward_space` tells, MO-Gymnasium's way) is left
    as it is.
    """
    if len(threads) == 1:
        return make

    def threaded() -> gymnasium.Env[Any, Any]:
        environment = make()
        if hasattr(environment.unwrapped, "reward_space"):
            return environment
        return ThreadRewards(environment, threads)

    return threaded
