"""WEAVE: weighted exploration, adaptive value estimation. The mathematics is in docs/rl.md.

It is PPO on another agent and with another advantage: every ratio is that of the mixture's exact
log-probability, so what PPO guarantees of an ordinary stochastic policy holds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from loomos.manifest import ExplorationStrategy, WeaveConfig
from loomos.rl.advantages import gae
from loomos.rl.pool import Arrays
from loomos.rl.ppo import PPO
from loomos.rl.rollouts import Episodes, Rollout
from loomos.rl.weave.agent import Mixture, WeaveAgent
from loomos.rl.weave.bonuses import BonusScale, CountBonus, NoveltyBonus
from loomos.rl.weave.threads import Scalarizer

TRUST_MEMORY = 0.9
"""Of the running mean of each critic's errors."""


class Weave(PPO):
    """An agent, its optimizer, its bonuses and the weights of its threads."""

    config: WeaveConfig
    agent: WeaveAgent

    def __init__(
        self,
        agent: WeaveAgent,
        config: WeaveConfig,
        *,
        observation_size: int,
        copies: int,
        generator: torch.Generator,
        average: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__(agent, config, generator=generator, average=average)
        self.threads = Scalarizer(config)
        self.bonuses: dict[str, CountBonus | NoveltyBonus] = {
            strategy: CountBonus(observation_size, config.seed)
            if strategy == ExplorationStrategy.UCB_EXPLORATION
            else NoveltyBonus(observation_size, config.hidden_sizes, config.seed)
            for strategy in config.bonuses
        }
        self.scales = {name: BonusScale(copies, config.bonus_gamma) for name in self.bonuses}
        self._errors = np.zeros(config.critics)
        entropy = ExplorationStrategy.ENTROPY_BASED in config.exploration_strategies
        if entropy:
            self.entropy_coef = config.entropy_weight

    @property
    def streams(self) -> int:
        """Streams of rewards: the threads, then the bonuses."""
        return len(self.config.reward_threads) + len(self.bonuses)

    # --- advantages ---

    def _advantages(self, rollout: Rollout, remaining: float) -> tuple[Tensor, Tensor]:
        """A = A_threads + sum_i c_i r_i A_i, with r_i the share of head i in the action."""
        config, threads = self.config, len(self.config.reward_threads)
        rewards = self.threads.rewards(rollout)
        outer = self._estimate(rollout, slice(0, threads), rewards, episodic=True)
        combined, returns = self.threads.combine(outer[0]), [outer[1]]
        over = max(0.0, 1 - (1 - remaining) / config.bonus_until)
        shares = self._responsibilities(rollout)
        for number, (name, bonus) in enumerate(self.bonuses.items()):
            given = self.scales[name](bonus.of(rollout)).unsqueeze(-1)
            place = slice(threads + number, threads + number + 1)
            inner = self._estimate(rollout, place, given, episodic=False)
            head = config.exploration_strategies.index(ExplorationStrategy(name))
            share = 1.0 if shares is None else shares[..., head % config.n_heads]
            worth = config.bonus_weight * over * inner[0].squeeze(-1)
            combined = combined + worth * share * (1 if shares is None else config.n_heads)
            returns.append(inner[1])
        self._weigh_critics(rollout, torch.cat(returns, dim=-1))
        return combined, torch.cat(returns, dim=-1)

    def _estimate(
        self, rollout: Rollout, streams: slice, rewards: Tensor, *, episodic: bool
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns of some streams; bonuses go on beyond the ends of episodes."""
        never = torch.zeros_like(rollout.terminated)
        return gae(
            rewards,
            rollout.values[..., streams],
            rollout.next_values[..., streams],
            rollout.terminated if episodic else never,
            rollout.truncated if episodic else never,
            gamma=self.config.gamma if episodic else self.config.bonus_gamma,
            gae_lambda=self.config.gae_lambda,
        )

    @torch.no_grad()
    def _responsibilities(self, rollout: Rollout) -> Tensor | None:
        policy = self.agent.policy(rollout.observations)
        if not isinstance(policy, Mixture):
            return None
        return policy.responsibilities(rollout.actions)

    @torch.no_grad()
    def _weigh_critics(self, rollout: Rollout, returns: Tensor) -> None:
        """alpha_j from exp(-rho e_j / mean e), e_j a running mean of j's error on new data."""
        config = self.config
        if config.critics == 1:
            return
        values = self.agent.all_values(rollout.observations)
        errors = (values - returns.unsqueeze(-2)).square().mean(dim=(0, 1, 3)).double()
        self._over_ranks(errors)
        self._errors = TRUST_MEMORY * self._errors + (1 - TRUST_MEMORY) * errors.numpy()
        relative = self._errors / max(self._errors.mean(), 1e-12)
        weights = np.exp(-config.trust_temperature * relative)
        self.agent.trust.copy_(torch.from_numpy(weights / weights.sum()))

    # --- state ---

    def note(self, episodes: Episodes) -> None:
        """Adapt the weights of the threads to the newest episodes of all ranks."""
        threads = len(self.config.reward_threads)
        ended = np.asarray(episodes.thread_returns, np.float64).reshape(-1, threads)
        sums = torch.from_numpy(np.append(ended.sum(axis=0), len(ended)))
        self._over_ranks(sums)
        if threads > 1 and sums[-1] > 0:
            self.threads.learn((sums[:-1] / sums[-1]).numpy())

    def state(self) -> Arrays:
        """What `load` needs besides the agent and the optimizer."""
        found: Arrays = {"threads": self.threads.state(), "errors": self._errors.copy()}
        for name, part in (*self.bonuses.items(), *self.scales.items()):
            kind = "scale" if isinstance(part, BonusScale) else "bonus"
            found |= {f"{kind}.{name}.{key}": array for key, array in part.state().items()}
        return found

    def load(self, state: Arrays) -> None:
        """Go on from what `state` gave."""
        self.threads.load(state["threads"])
        self._errors = state["errors"].copy()
        for kind, parts in (("bonus", self.bonuses), ("scale", self.scales)):
            for name, part in parts.items():
                prefix = f"{kind}.{name}."
                part.load(
                    {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                )
