"""Policies as files: what a run publishes and what a program loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

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


def load_policy(folder: str | Path) -> Policy:
    """Read what `save_policy` wrote, or a downloaded version of a policy.

    Raises:
        InvalidModel: the folder holds no policy.
        InvalidInput: its environment is not installed here.
    """
    root = Path(folder)
    try:
        settings = json.loads((root / SETTINGS).read_text())
        tensors = load_file(root / WEIGHTS)
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{root} holds no policy: {error}") from error
    kind = WeaveConfig if "weave" in settings else PPOConfig
    config = kind.model_validate_json(json.dumps(settings.get("weave") or settings["ppo"]))
    environment = EnvironmentChoice.model_validate(settings["environment"])
    made = environment_maker(environment)()
    size = int(gymnasium.spaces.flatdim(made.observation_space))
    agent = make_agent(config, size, made.action_space)
    made.close()
    scale = None
    if SCALE in tensors:
        scale = ObservationScale(size)
        scale.moments.load(tensors.pop(SCALE).numpy())
    agent.load_state_dict({k.removeprefix("agent."): v for k, v in tensors.items()})
    return Policy(agent, scale, environment)
