"""WEAVE's agent: a gated mixture of policies and an ensemble of critics."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loomos.errors import InvalidInput
from loomos.manifest import WeaveConfig
from loomos.rl.networks import Acted, Categorical, DiagonalGaussian, Judged, orthogonal, perceptron


class Mixture:
    """pi(a|s) = sum_i w_i(s) pi_i(a|s), by log w [..., K] and components over [..., K]."""

    def __init__(self, log_gate: Tensor, components: Categorical | DiagonalGaussian) -> None:
        self.log_gate, self.components = log_gate, components

    def joint(self, actions: Tensor) -> Tensor:
        """Log w_i + log pi_i(a), [..., K]."""
        spread = actions.unsqueeze(-1 if isinstance(self.components, Categorical) else -2)
        if isinstance(self.components, Categorical):
            spread = spread.expand(self.log_gate.shape)
        return self.log_gate + self.components.log_prob(spread)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The exact log-probability of the mixture, [...]."""
        return torch.logsumexp(self.joint(actions), dim=-1)

    def responsibilities(self, actions: Tensor) -> Tensor:
        """Share of each component in an action, [..., K]: its posterior given the action."""
        return torch.softmax(self.joint(actions), dim=-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw a component, then its action."""
        chosen = Categorical(self.log_gate).sample(generator)
        drawn = self.components.sample(generator)
        if isinstance(self.components, Categorical):
            return drawn.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        place = chosen[..., None, None].expand(*chosen.shape, 1, drawn.shape[-1])
        return drawn.gather(-2, place).squeeze(-2)

    def mode(self) -> Tensor:
        """The likeliest action; of continuous ones the mean of the likeliest component."""
        if isinstance(self.components, Categorical):
            return torch.logsumexp(
                self.log_gate.unsqueeze(-1) + self.components.log_p, dim=-2
            ).argmax(-1)
        mean = self.components.mean
        place = self.log_gate.argmax(-1)[..., None, None].expand(
            *mean.shape[:-2], 1, mean.shape[-1]
        )
        return mean.gather(-2, place).squeeze(-2)

    def entropy(self) -> Tensor:
        """Exact for discrete actions; for continuous ones the bound sum_i w_i H(pi_i) from below.

        The bound is that of Hershey & Olsen 2007 without the gate's part; a mixture of Gaussians
        has no entropy in closed form.
        """
        if isinstance(self.components, Categorical):
            log_p = torch.logsumexp(self.log_gate.unsqueeze(-1) + self.components.log_p, dim=-2)
            return -(log_p.exp() * log_p).sum(-1)
        return (self.log_gate.exp() * self.components.entropy()).sum(-1)

    def balance(self) -> Tensor:
        """Entropy of the gate's mean over a batch: largest when all components are used."""
        mean = self.log_gate.exp().flatten(0, -2).mean(dim=0)
        return Categorical(mean.clamp(min=1e-8).log()).entropy()


class WeaveAgent(nn.Module):
    """K policies on a trunk with a gate; M critics, each with a value for every stream."""

    trust: Tensor
    """[M]: alpha, how much each critic counts; they sum to 1."""

    def __init__(
        self,
        observation_size: int,
        action_space: gymnasium.Space[Any],
        config: WeaveConfig,
        streams: int,
    ) -> None:
        super().__init__()
        self.config = config
        heads = config.n_heads
        if isinstance(action_space, gymnasium.spaces.Discrete):
            outputs = int(action_space.n)
        elif isinstance(action_space, gymnasium.spaces.Box):
            outputs = math.prod(action_space.shape)
        else:
            raise InvalidInput(f"a policy cannot act in {action_space}; use Discrete or Box")
        self.log_std: nn.Parameter | None = None
        if isinstance(action_space, gymnasium.spaces.Box):
            shape = (outputs,) if heads == 1 else (heads, outputs)
            self.log_std = nn.Parameter(torch.full(shape, config.log_std_init))
        sizes, activation = config.hidden_sizes, config.activation
        self.actor = perceptron(observation_size, sizes, outputs, activation=activation, gain=0.01)
        width = sizes[-1] if sizes else observation_size
        self.critics = nn.ModuleList(
            perceptron(observation_size, sizes, streams, activation=activation, gain=1)
            for _ in range(config.critics)
        )
        self.more_heads = nn.ModuleList(
            orthogonal(nn.Linear(width, outputs), 0.01) for _ in range(heads - 1)
        )
        self.gate = orthogonal(nn.Linear(width, heads), 0.01) if heads > 1 else None
        self.register_buffer("trust", torch.full((config.critics,), 1 / config.critics))

    def policy(self, observations: Tensor) -> Categorical | DiagonalGaussian | Mixture:
        """The distribution of actions for observations [..., D]; a mixture of one is its part."""
        if self.gate is None:
            return self._distribution(self.actor(observations))
        features = self.actor[:-1](observations)
        outputs = [head(features) for head in (self.actor[-1], *self.more_heads)]
        log_gate = F.log_softmax(self.gate(features), dim=-1)
        return Mixture(log_gate, self._distribution(torch.stack(outputs, dim=-2)))

    def _distribution(self, outputs: Tensor) -> Categorical | DiagonalGaussian:
        if self.log_std is None:
            return Categorical(outputs)
        return DiagonalGaussian(outputs, self.log_std)

    def all_values(self, observations: Tensor) -> Tensor:
        """[..., M, S]: of every critic."""
        return torch.stack([critic(observations) for critic in self.critics], dim=-2)

    def value(self, observations: Tensor) -> Tensor:
        """[..., S]: sum_j alpha_j V_j with alpha summing to 1, less the ensemble's deviation."""
        if len(self.critics) == 1:
            alone: Tensor = self.critics[0](observations)
            return alone
        values = self.all_values(observations)
        mean = (values * self.trust.unsqueeze(-1)).sum(-2)
        return mean - self.config.caution * values.std(-2)

    def act(self, observations: Tensor, generator: torch.Generator) -> Acted:
        """See `Agent`."""
        policy = self.policy(observations)
        actions = policy.sample(generator)
        return Acted(actions, policy.log_prob(actions), self.value(observations))

    def best(self, observations: Tensor) -> Tensor:
        """See `Agent`."""
        return self.policy(observations).mode()

    def judge(self, observations: Tensor, actions: Tensor) -> Judged:
        """See `Agent`; values are those of every critic, [B, M, S], if there are several."""
        policy = self.policy(observations)
        alone = len(self.critics) == 1
        values = self.critics[0](observations) if alone else self.all_values(observations)
        judged = Judged(policy.log_prob(actions), policy.entropy(), values)
        if not isinstance(policy, Mixture):
            return judged
        return judged._replace(regularizer=-self.config.balance_weight * policy.balance())
