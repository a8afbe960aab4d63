"""How well a policy does when it takes its likeliest actions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loomos.rl.networks import Agent
from loomos.rl.normalizing import ObservationScale
from loomos.rl.pool import EnvironmentPool, Make

EVALUATION_COPIES = 1_000_000
"""Copies are numbered from here in evaluations, so that their episodes are no training's."""


class Played(NamedTuple):
    """An episode of likeliest actions."""

    rewards: list[float]
    """Undiscounted return of each thread of rewards; one where there is one."""
    is_solved: bool | None
    """Whether it was solved, where the environment says so."""


@torch.no_grad()
def play(
    make: Make,
    agent: Agent,
    scale: ObservationScale | None,
    *,
    episodes: list[int],
    seed: int,
) -> list[Played]:
    """Play these episodes side by side.

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
    total: NDArray[np.float64] = np.zeros(())
    played: list[Played | None] = [None] * len(episodes)
    pool.reset()
    while None in played:
        seen = scale(pool.observations) if scale else pool.observations
        result = pool.step(agent.best(torch.from_numpy(seen)).numpy())
        total = total + result.rewards.reshape(len(episodes), -1)
        for copy in np.flatnonzero(result.terminated | result.truncated):
            if played[copy] is None:
                is_solved = result.infos[copy].get("is_correct")
                played[copy] = Played(total[copy].tolist(), is_solved)
    pool.close()
    return [episode for episode in played if episode is not None]


def returns(
    make: Make,
    agent: Agent,
    scale: ObservationScale | None,
    *,
    episodes: list[int],
    seed: int,
) -> list[float]:
    """The undiscounted return of each of these episodes, of all threads together; see `play`."""
    found = play(make, agent, scale, episodes=episodes, seed=seed)
    return [sum(episode.rewards) for episode in found]


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
