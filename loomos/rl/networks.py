"""Policies and values as small networks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import gymnasium
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loomos.errors import InvalidInput

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Acted(NamedTuple):
    """What a policy did."""

    actions: Tensor
    """[N] or [N, A]."""
    log_probs: Tensor
    """[N]."""
    values: Tensor
    """[N, S]: of each stream of rewards."""


class Judged(NamedTuple):
    """What a policy now says of what was done."""

    log_probs: Tensor
    """[B]."""
    entropy: Tensor
    """[B]."""
    values: Tensor
    """[B, S]; [B, M, S] of M critics that learn side by side."""
    regularizer: Tensor | None = None
    """Added to the loss as it is."""


class Agent(Protocol):
    """What acts and is trained; also a `torch.nn.Module`."""

    def act(self, observations: Tensor, generator: torch.Generator) -> Acted:
        """Sample actions for observations [N, D]."""
        ...

    def best(self, observations: Tensor) -> Tensor:
        """The likeliest actions for observations [N, D]."""
        ...

    def value(self, observations: Tensor) -> Tensor:
        """Values [N, S] of observations [N, D]."""
        ...

    def judge(self, observations: Tensor, actions: Tensor) -> Judged:
        """Log-probabilities, entropies and values of a minibatch, with gradients."""
        ...


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """Orthogonal weights (Saxe et al. 2014, arXiv:1312.6120) and zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def perceptron(
    size: int, hidden: list[int], outputs: int, *, activation: str, gain: float
) -> nn.Sequential:
    """Layers with gain sqrt(2), the last with its own."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [orthogonal(nn.Linear(size, width), math.sqrt(2))]
        layers += [nn.Tanh() if activation == "tanh" else nn.ReLU()]
        size = width
    return nn.Sequential(*layers, orthogonal(nn.Linear(size, outputs), gain))


class Categorical:
    """One of n actions, by logits [..., n]."""

    def __init__(self, logits: Tensor) -> None:
        self.log_p = F.log_softmax(logits, dim=-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions [...], by inverting the cumulative distribution."""
        cumulative = self.log_p.exp().cumsum(-1)
        shape = (*cumulative.shape[:-1], 1)
        drawn = torch.rand(shape, generator=generator, dtype=cumulative.dtype)
        return (cumulative <= drawn).sum(-1).clamp(max=cumulative.shape[-1] - 1)

    def mode(self) -> Tensor:
        """The likeliest actions [...]."""
        return self.log_p.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Of actions [...]."""
        return self.log_p.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """In nats [...]."""
        return -(self.log_p.exp() * self.log_p).sum(-1)


class DiagonalGaussian:
    """Independent normal actions, by mean [..., A] and log_std [A]."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std.expand_as(mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions [..., A]."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        """The likeliest actions [..., A]."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Of actions [..., A], together."""
        away = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * away.square() - self.log_std - HALF_LOG_TWO_PI).sum(-1)

    def entropy(self) -> Tensor:
        """In nats [...], of all together."""
        return (0.5 + HALF_LOG_TWO_PI + self.log_std).sum(-1)


class ActorCritic(nn.Module):
    """A policy and a value, each a perceptron of its own."""

    def __init__(
        self,
        observation_size: int,
        action_space: gymnasium.Space[Any],
        *,
        hidden_sizes: list[int],
        activation: str = "tanh",
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.log_std: nn.Parameter | None = None
        if isinstance(action_space, gymnasium.spaces.Discrete):
            outputs = int(action_space.n)
        elif isinstance(action_space, gymnasium.spaces.Box):
            outputs = math.prod(action_space.shape)
            self.log_std = nn.Parameter(torch.full((outputs,), log_std_init))
        else:
            raise InvalidInput(f"a policy cannot act in {action_space}; use Discrete or Box")
        self.actor = perceptron(
            observation_size, hidden_sizes, outputs, activation=activation, gain=0.01
        )
        self.critic = perceptron(observation_size, hidden_sizes, 1, activation=activation, gain=1)

    def policy(self, observations: Tensor) -> Categorical | DiagonalGaussian:
        """The distribution of actions for observations [..., D]."""
        outputs = self.actor(observations)
        if self.log_std is None:
            return Categorical(outputs)
        return DiagonalGaussian(outputs, self.log_std)

    def act(self, observations: Tensor, generator: torch.Generator) -> Acted:
        """See `Agent`."""
        policy = self.policy(observations)
        actions = policy.sample(generator)
        return Acted(actions, policy.log_prob(actions), self.critic(observations))

    def best(self, observations: Tensor) -> Tensor:
        """See `Agent`."""
        return self.policy(observations).mode()

    def value(self, observations: Tensor) -> Tensor:
        """See `Agent`."""
        values: Tensor = self.critic(observations)
        return values

    def judge(self, observations: Tensor, actions: Tensor) -> Judged:
        """See `Agent`."""
        policy = self.policy(observations)
        return Judged(policy.log_prob(actions), policy.entropy(), self.critic(observations))
