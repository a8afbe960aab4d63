"""How well a policy does when it takes its likeliest actions."""

from __future__ import annotations

import numpy as np
import torch

from loomos.rl.networks import Agent
from loomos.rl.normalizing import ObservationScale
from loomos.rl.pool import EnvironmentPool, Make

EVALUATION_COPIES = 1_000_000
"""Copies are numbered from here in evaluations, so that their episodes are no training's."""


@torch.no_grad()
def returns(
    make: Make,
    agent: Agent,
    scale: ObservationScale | None,
    *,
    episodes: list[int],
    seed: int,
) -> list[float]:
    """The undiscounted return of each of these episodes, of all threads, played side by side.

    Args:
        make: makes the environment.
        agent: acts.
        scale: of its observations, if it learned with one.
        episodes: numbers of the episodes; the same numbers and seed are the same episodes.
        seed: of the evaluation.
    """
    if not episodes:
        return []
    pool = EnvironmentPool(make, [EVALUATION_COPIES + n for n in episodes], seed=seed)
    total = np.zeros(len(episodes))
    alive = np.ones(len(episodes), np.bool_)
    pool.reset()
    while alive.any():
        seen = scale(pool.observations) if scale else pool.observations
        result = pool.step(agent.best(torch.from_numpy(seen)).numpy())
        rewards = result.rewards if result.rewards.ndim == 1 else result.rewards.sum(axis=1)
        total[alive] += rewards[alive]
        alive &= ~(result.terminated | result.truncated)
    pool.close()
    return [float(value) for value in total]


def mean_return(
    make: Make,
    agent: Agent,
    scale: ObservationScale | None,
    *,
    episodes: list[int],
    seed: int,
) -> float:
    """The mean of `returns`; 0 of none."""
    found = returns(make, agent, scale, episodes=episodes, seed=seed)
    return sum(found) / len(found) if found else 0.0
