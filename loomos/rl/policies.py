"""Policies as files: what a run publishes and what a program loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loomos.errors import InvalidModel
from loomos.manifest import EnvironmentChoice, PPOConfig, WeaveConfig
from loomos.rl.making import environment_maker
from loomos.rl.networks import ActorCritic
from loomos.rl.normalizing import ObservationScale
from loomos.rl.weave.agent import WeaveAgent

WEIGHTS = "policy.safetensors"
SETTINGS = "policy.json"
SCALE = "observation_scale"


class Policy:
    """A trained policy.

    Example:
        policy = load_policy("policy/")
        action = policy.act(observation)
    """

    def __init__(
        self,
        agent: ActorCritic | WeaveAgent,
        scale: ObservationScale | None,
        environment: EnvironmentChoice,
    ) -> None:
        self.agent, self.scale, self.environment = agent, scale, environment

    @torch.no_grad()
    def act(self, observation: NDArray[Any]) -> Any:
        """The likeliest action for one observation [D], as the environment takes it."""
        row = np.asarray(observation, np.float32).reshape(1, -1)
        seen = self.scale(row) if self.scale else row
        action = self.agent.best(torch.from_numpy(seen))[0].numpy()
        return action.item() if action.ndim == 0 else action


def make_agent(
    config: PPOConfig, observation_size: int, action_space: gymnasium.Space[Any]
) -> ActorCritic | WeaveAgent:
    """The network of a run, with its first weights: a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(config, WeaveConfig):
            streams = len(config.reward_threads) + len(config.bonuses)
            return WeaveAgent(observation_size, action_space, config, streams)
        return ActorCritic(
            observation_size,
            action_space,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            log_std_init=config.log_std_init,
        )


def average_weights(
    policies: Sequence[Mapping[str, Tensor]], shares: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The weighted mean of parameters, computed in double precision.

    Args:
        policies: parameters by name.
        shares: of each, summing to 1. Default: equal.

    Raises:
        InvalidModel: they are of different shapes.
    """
    first = policies[0]
    shapes = {name: tensor.shape for name, tensor in first.items()}
    for other in policies[1:]:
        if {name: tensor.shape for name, tensor in other.items()} != shapes:
            raise InvalidModel("the policies are of different shapes and have no average")
    shares = shares or [1 / len(policies)] * len(policies)
    parts = [(share, policy) for share, policy in zip(shares, policies, strict=True)]
    return {
        name: torch.stack([share * policy[name].double() for share, policy in parts])
        .sum(0)
        .to(tensor.dtype)
        for name, tensor in first.items()
    }


def save_policy(
    folder: Path,
    weights: dict[str, Tensor],
    scale: Tensor | None,
    config: PPOConfig,
    environment: EnvironmentChoice,
) -> None:
    """Write a policy's files.

    Args:
        folder: where to.
        weights: the agent's, by name.
        scale: moments of its observations, if it learned with them.
        config: how it learned, hence its shape.
        environment: where it acts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"agent.{name}": tensor.contiguous() for name, tensor in weights.items()}
    if scale is not None:
        tensors[SCALE] = scale
    save_file(tensors, folder / WEIGHTS)
    algorithm = "weave" if isinstance(config, WeaveConfig) else "ppo"
    learned = config.model_dump(mode="json")
    settings = {"format": 1, algorithm: learned, "environment": environment.model_dump()}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, sort_keys=True))


class SavedPolicy(NamedTuple):
    """What `save_policy` wrote."""

    weights: dict[str, Tensor]
    """The agent's, by name."""
    scale: Tensor | None
    """Moments of its observations."""
    settings: dict[str, Any]
    """How it learned, and where."""


def read_policy(folder: str | Path) -> SavedPolicy:
    """Read what `save_policy` wrote.

    Raises:
        InvalidModel: the folder holds no policy.
    """
    root = Path(folder)
    try:
        settings = json.loads((root / SETTINGS).read_text())
        tensors = load_file(root / WEIGHTS)
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{root} holds no policy: {error}") from error
    scale = tensors.pop(SCALE, None)
    return SavedPolicy({k.removeprefix("agent."): v for k, v in tensors.items()}, scale, settings)


def load_into(agent: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Give an agent the weights of a policy.

    Raises:
        InvalidModel: they are of another shape.
    """
    try:
        agent.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise InvalidModel(
            f"policy {source} is of another shape than these settings make; give it the same "
            f"hidden_sizes, heads, critics and threads, and the same environment: {said}"
        ) from error


def load_policy(folder: str | Path) -> Policy:
    """Read what `save_policy` wrote, or a downloaded version of a policy.

    Raises:
        InvalidModel: the folder holds no policy.
        InvalidInput: its environment is not installed here.
    """
    weights, moments, settings = read_policy(folder)
    kind = WeaveConfig if "weave" in settings else PPOConfig
    config = kind.model_validate_json(json.dumps(settings.get("weave") or settings["ppo"]))
    environment = EnvironmentChoice.model_validate(settings["environment"])
    made = environment_maker(environment)()
    size = int(gymnasium.spaces.flatdim(made.observation_space))
    agent = make_agent(config, size, made.action_space)
    made.close()
    scale = None
    if moments is not None:
        scale = ObservationScale(size)
        scale.moments.load(moments.numpy())
    load_into(agent, weights, str(folder))
    return Policy(agent, scale, environment)
