"""A WEAVE for a pool of environments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from loomos.manifest import WeaveConfig
from loomos.rl.policies import make_agent
from loomos.rl.pool import EnvironmentPool
from loomos.rl.weave.agent import WeaveAgent
from loomos.rl.weave.weave import Weave


def make_weave(
    pool: EnvironmentPool,
    config: WeaveConfig,
    *,
    generator: torch.Generator,
    average: Callable[[Tensor], None] | None = None,
) -> Weave:
    """Agent, optimizer and bonuses; weights are a function of the seed."""
    agent = make_agent(config, pool.observation_size, pool.action_space)
    assert isinstance(agent, WeaveAgent)
    return Weave(
        agent,
        config,
        observation_size=pool.observation_size,
        copies=len(pool),
        generator=generator,
        average=average,
    )
