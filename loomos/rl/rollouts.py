"""Rollouts: what happened while a policy acted for a while in all copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loomos.manifest import PPOConfig
from loomos.rl.networks import Agent
from loomos.rl.normalizing import ObservationScale, RewardScale
from loomos.rl.pool import Arrays, EnvironmentPool


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """T steps of N copies; S streams of rewards."""

    observations: Tensor
    """[T, N, D], as the policy saw them."""
    actions: Tensor
    """[T, N] or [T, N, A]."""
    log_probs: Tensor
    """[T, N]."""
    rewards: Tensor
    """[T, N, S]."""
    values: Tensor
    """[T, N, S]."""
    next_values: Tensor
    """[T, N, S]: of what each step led to, before any reset."""
    terminated: Tensor
    """[T, N]."""
    truncated: Tensor
    """[T, N]."""
    next_observations: Tensor | None = None
    """[T, N, D] that the steps led to, before any reset."""
    accrued: Tensor | None = None
    """[N, S] undiscounted returns, before the first step, of the episodes under way; None for 0."""


@dataclass(kw_only=True)
class Episodes:
    """Undiscounted returns and lengths of the episodes that ended."""

    returns: list[float]
    lengths: list[int]
    thread_returns: list[list[float]]
    """Of each thread of rewards, where there are several."""


class Collector:
    """Has a policy act in a pool; keeps what must outlive a batch."""

    def __init__(self, pool: EnvironmentPool, config: PPOConfig) -> None:
        self._pool = pool
        self._config = config
        count = len(pool)
        size = pool.observation_size
        self.scale = ObservationScale(size) if config.normalize_observations else None
        self._rewards = RewardScale(count, config.gamma) if config.normalize_rewards else None
        self._returns = np.zeros(count)
        self._lengths = np.zeros(count, np.int64)
        self.seen = torch.zeros(count, size)
        """[N, D]: what the policy would act on next."""

    def reset(self) -> None:
        """Begin the first episodes."""
        self._see(self._pool.reset(), learn=True)

    def _see(self, observations: np.ndarray, *, learn: bool) -> np.ndarray:
        if self.scale is None:
            return observations
        if learn:
            self.scale.moments.add(observations)
        return self.scale(observations)

    @torch.no_grad()
    def collect(
        self, agent: Agent, steps: int, generator: torch.Generator
    ) -> tuple[Rollout, Episodes]:
        """Act for so many steps in every copy."""
        seen = torch.from_numpy(self._see(self._pool.observations, learn=False).copy())
        episodes = Episodes(returns=[], lengths=[], thread_returns=[])
        observations, actions, log_probs, values = [], [], [], []
        rewards, terminated, truncated, led_to = [], [], [], []
        cut_values: list[tuple[int, np.ndarray, Tensor]] = []
        accrued = self._returns.reshape(len(self._pool), -1).copy()
        for step in range(steps):
            acted = agent.act(seen, generator)
            observations.append(seen)
            actions.append(acted.actions)
            log_probs.append(acted.log_probs)
            values.append(acted.values)
            result = self._pool.step(acted.actions.numpy())
            done = result.terminated | result.truncated
            self._count(result.rewards, done, episodes)
            given = self._rewards(result.rewards, done) if self._rewards else result.rewards
            rewards.append(given)
            terminated.append(result.terminated)
            truncated.append(result.truncated)
            led_to.append(self._see(result.final_observations, learn=False))
            following = self._see(result.observations, learn=True)
            cut = np.flatnonzero(result.truncated & ~result.terminated)
            if len(cut):
                last = torch.from_numpy(led_to[-1][cut])
                cut_values.append((step, cut, agent.value(last)))
            seen = torch.from_numpy(following)
        self.seen = seen
        all_values = torch.stack(values)
        next_values = torch.cat([all_values[1:], agent.value(seen).unsqueeze(0)])
        for step, cut, value in cut_values:
            next_values[step, torch.from_numpy(cut)] = value
        rollout = Rollout(
            observations=torch.stack(observations),
            actions=torch.stack(actions),
            log_probs=torch.stack(log_probs),
            rewards=torch.from_numpy(np.stack(rewards))
            .to(all_values.dtype)
            .view(steps, len(self._pool), -1),
            values=all_values,
            next_values=next_values,
            terminated=torch.from_numpy(np.stack(terminated)),
            truncated=torch.from_numpy(np.stack(truncated)),
            next_observations=torch.from_numpy(np.stack(led_to)),
            accrued=torch.from_numpy(accrued).to(all_values.dtype),
        )
        return rollout, episodes

    def _count(self, rewards: np.ndarray, done: np.ndarray, episodes: Episodes) -> None:
        if self._returns.shape != rewards.shape:
            self._returns = np.zeros_like(rewards)
        self._returns += rewards
        self._lengths += 1
        if done.any():
            ended = self._returns[done]
            if ended.ndim == 2:
                episodes.thread_returns += ended.tolist()
                ended = ended.sum(axis=1)
            episodes.returns += ended.tolist()
            episodes.lengths += self._lengths[done].tolist()
            self._returns[done] = 0.0
            self._lengths[done] = 0

    def snapshot(self) -> Arrays:
        """What `restore` needs, the pool's included."""
        state = {
            **{f"pool.{name}": array for name, array in self._pool.snapshot().items()},
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
        }
        if self.scale is not None:
            state["observation_scale"] = self.scale.moments.state()
        if self._rewards is not None:
            state["reward_scale"] = self._rewards.moments.state()
            state["discounted"] = self._rewards.returns.copy()
        return state

    def restore(self, state: Arrays) -> None:
        """Come to the state of a snapshot."""
        self._pool.restore(
            {k.removeprefix("pool."): v for k, v in state.items() if k.startswith("pool.")}
        )
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()
        if self.scale is not None:
            self.scale.moments.load(state["observation_scale"])
        if self._rewards is not None:
            self._rewards.moments.load(state["reward_scale"])
            self._rewards.returns = state["discounted"].copy()
