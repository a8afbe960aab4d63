"""Acting and learning by turns, in one process: what trainings, programs and benchmarks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from loomos.manifest import PPOConfig, WeaveConfig
from loomos.rl.policies import make_agent
from loomos.rl.pool import EnvironmentPool
from loomos.rl.ppo import PPO
from loomos.rl.rollouts import Collector, Episodes
from loomos.rl.weave.agent import WeaveAgent
from loomos.rl.weave.weave import Weave

Average = Callable[[Tensor], None]
"""Puts the average over all ranks in place of a rank's values."""


class Practice:
    """A policy that acts in a pool of environments and learns from it, update by update."""

    def __init__(
        self,
        pool: EnvironmentPool,
        config: PPOConfig,
        *,
        generator: torch.Generator | None = None,
        average: Average | None = None,
    ) -> None:
        """Make one; weights are a function of the seed. `collector.reset` begins episodes.

        Args:
            pool: where it acts.
            config: how it learns; `WeaveConfig` for WEAVE.
            generator: of actions and minibatches. Default: one of the config's seed.
            average: over all ranks; None if alone.
        """
        self._config = config
        self._generator = generator or torch.Generator().manual_seed(config.seed)
        self.learner = make_ppo(pool, config, generator=self._generator, average=average)
        """The agent and its optimizer."""
        self.collector = Collector(pool, config)
        """What acts."""

    def update(self, number: int) -> tuple[dict[str, float], Episodes]:
        """Act for a batch and learn from it.

        Args:
            number: updates so far, of `config.updates`.

        Returns:
            Metrics of the update, and the episodes that ended.
        """
        config = self._config
        rollout, episodes = self.collector.collect(
            self.learner.agent, config.steps_per_update, self._generator
        )
        self.learner.note(episodes)
        return self.learner.update(rollout, remaining=1 - number / config.updates), episodes


def make_ppo(
    pool: EnvironmentPool,
    config: PPOConfig,
    *,
    generator: torch.Generator,
    average: Average | None = None,
) -> PPO:
    """PPO for what a pool shows and takes, or WEAVE if the config is one's."""
    agent = make_agent(config, pool.observation_size, pool.action_space)
    if not isinstance(config, WeaveConfig):
        return PPO(agent, config, generator=generator, average=average)
    assert isinstance(agent, WeaveAgent)
    return Weave(
        agent,
        config,
        observation_size=pool.observation_size,
        copies=len(pool),
        generator=generator,
        average=average,
    )
