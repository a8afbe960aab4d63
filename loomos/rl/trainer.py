"""PPO for programs: give it an environment, or trajectories of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from loomos.errors import InvalidInput
from loomos.manifest import EnvironmentChoice, PPOConfig
from loomos.rl.making import environment_maker
from loomos.rl.policies import Policy, make_agent
from loomos.rl.pool import EnvironmentPool
from loomos.rl.ppo import PPO
from loomos.rl.practice import Practice
from loomos.rl.rollouts import Collector, Rollout


class Trajectories(NamedTuple):
    """What a policy did: T steps in each of N environments."""

    observations: NDArray[np.float32]
    """[T, N, D] that the steps started from."""
    actions: NDArray[Any]
    """[T, N] or [T, N, A]."""
    rewards: NDArray[np.floating]
    """[T, N]."""
    terminated: NDArray[np.bool_]
    """[T, N]: the step ended its episode."""
    log_probs: NDArray[np.floating]
    """[T, N] of the actions, under the policy that took them."""
    final_observations: NDArray[np.float32]
    """[N, D] after the last step."""
    truncated: NDArray[np.bool_] | None = None
    """[T, N]: the step was the last that its episode was allowed; it counts as its end here."""


class PPOTrainer:
    """Proximal policy optimisation in this process.

    A training that must survive its process is a job: `algorithm: ppo` in a manifest.

    Example:
        trainer = PPOTrainer(PPOConfig(total_timesteps=50_000))
        policy = trainer.train("CartPole-v1")
    """

    def __init__(self, config: PPOConfig | Mapping[str, Any] | None = None) -> None:
        """Make one.

        Args:
            config: the settings, or a dictionary of them.

        Raises:
            pydantic.ValidationError: a field is unknown or out of range.
        """
        self.config = ppo_config(config)
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._ppo: PPO | None = None

    @property
    def policy(self) -> Any:
        """The network that is trained; an `Agent`.

        Raises:
            InvalidInput: nothing has told yet what it sees and does.
        """
        if self._ppo is None:
            raise InvalidInput(
                "the trainer knows no environment yet; call prepare, train or update"
            )
        return self._ppo.agent

    def prepare(self, observation_size: int, action_space: gymnasium.Space[Any]) -> None:
        """Make the network for what it sees and does; done again it begins anew."""
        agent = make_agent(self.config, observation_size, action_space)
        self._ppo = PPO(agent, self.config, generator=self._generator)

    def train(
        self,
        environment: str | EnvironmentChoice,
        *,
        on_update: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Policy:
        """Train from the beginning for `total_timesteps`.

        Args:
            environment: where.
            on_update: called after each update with its number, from 1, and its metrics.

        Raises:
            InvalidInput: there is no such environment.
        """
        choice = EnvironmentChoice.model_validate(environment)
        config = self.config
        copies = range(config.n_environments)
        pool = EnvironmentPool(environment_maker(choice), copies, seed=config.seed)
        practice = Practice(pool, config, generator=self._generator)
        self._ppo = practice.learner
        practice.collector.reset()
        for update in range(config.updates):
            metrics, episodes = practice.update(update)
            if on_update is not None:
                mean = np.mean(episodes.returns) if episodes.returns else math.nan
                on_update(update + 1, {**metrics, "episode_return": float(mean)})
        pool.close()
        return Policy(self._ppo.agent, practice.collector.scale, choice)

    async def update(self, trajectories: Trajectories | Mapping[str, Any]) -> dict[str, float]:
        """Learn from what a policy did.

        Args:
            trajectories: `Trajectories`, or a dictionary of its fields; `states` and `dones` stand
                for `observations` and `terminated`. Arrays may lack the dimension N.

        Returns:
            Means over the update: `policy_loss`, `value_loss`, `kl_div` and others.

        Raises:
            InvalidInput: a field is missing or of another shape than the rest.
        """
        given = read_trajectories(trajectories)
        if self._ppo is None:
            self.prepare(given.observations.shape[-1], _space_of(given.actions))
        assert self._ppo is not None
        return self._ppo.update(rollout_of(given, self._ppo.agent), remaining=1.0)


@torch.no_grad()
def rollout_of(given: Trajectories, agent: Any) -> Rollout:
    """What an update takes, of trajectories whose rewards are [T, N] or, of S streams, [T, N, S].

    What was truncated counts as ended, for it is not known what it led to.
    """
    observations = torch.from_numpy(given.observations)
    last = torch.from_numpy(given.final_observations).unsqueeze(0)
    values = agent.value(observations)
    over = given.terminated if given.truncated is None else given.terminated | given.truncated
    rewards = torch.from_numpy(given.rewards).to(values.dtype)
    return Rollout(
        observations=observations,
        actions=torch.from_numpy(given.actions),
        log_probs=torch.from_numpy(given.log_probs),
        rewards=rewards.view(*over.shape, -1),
        values=values,
        next_values=torch.cat([values[1:], agent.value(last)]),
        terminated=torch.from_numpy(over),
        truncated=torch.zeros(over.shape, dtype=torch.bool),
        next_observations=torch.cat([observations[1:], last]),
    )


def ppo_config(config: PPOConfig | Mapping[str, Any] | None) -> PPOConfig:
    """Settings from what a program gives; a batch that 8 does not divide has fewer copies."""
    if isinstance(config, PPOConfig):
        return config
    given = dict(config or {})
    if "batch_size" in given and "n_environments" not in given:
        given["n_environments"] = math.gcd(given["batch_size"], 8)
    return PPOConfig.model_validate(given)


def read_trajectories(given: Trajectories | Mapping[str, Any]) -> Trajectories:
    """Trajectories of one shape, from what a program gives.

    Raises:
        InvalidInput: a field is missing or of another shape than the rest.
    """
    fields = given._asdict() if isinstance(given, Trajectories) else dict(given)
    for theirs, ours in (("states", "observations"), ("dones", "terminated")):
        if theirs in fields:
            fields[ours] = fields.pop(theirs)
    for name in ("observations", "actions", "rewards", "terminated", "log_probs"):
        if fields.get(name) is None:
            raise InvalidInput(f"trajectories.{name} is missing")
    arrays = {name: np.asarray(value) for name, value in fields.items() if value is not None}
    if arrays["rewards"].ndim == 1:
        arrays = {
            name: value[None] if name == "final_observations" else value[:, None]
            for name, value in arrays.items()
        }
    shape = arrays["rewards"].shape
    for name, array in arrays.items():
        if name != "final_observations" and array.shape[:2] != shape:
            raise InvalidInput(
                f"trajectories.{name} has shape {list(array.shape)}; it must begin with "
                f"{list(shape)} as rewards do"
            )
    observations = arrays["observations"].astype(np.float32)
    final = arrays.get("final_observations")
    return Trajectories(
        observations=observations,
        actions=arrays["actions"],
        rewards=arrays["rewards"].astype(np.float32),
        terminated=arrays["terminated"].astype(np.bool_),
        log_probs=arrays["log_probs"].astype(np.float32),
        final_observations=observations[-1] if final is None else final.astype(np.float32),
        truncated=arrays["truncated"].astype(np.bool_) if "truncated" in arrays else None,
    )


def _space_of(actions: NDArray[Any]) -> gymnasium.Space[Any]:
    """The smallest space that holds the actions of a first batch."""
    if np.issubdtype(actions.dtype, np.integer):
        return gymnasium.spaces.Discrete(int(actions.max()) + 1)
    return gymnasium.spaces.Box(-np.inf, np.inf, actions.shape[2:], np.float32)


@torch.no_grad()
async def collect_trajectories(environment: Any, policy: Any, steps: int) -> Trajectories:
    """Act for so many steps in one environment.

    Args:
        environment: a Gymnasium environment or one of `LoomRLGym`.
        policy: an `Agent`, such as `PPOTrainer.policy`.
        steps: how many; episodes follow each other.
    """
    single = environment if isinstance(environment, gymnasium.Env) else environment.gymnasium
    collector = Collector(
        EnvironmentPool(lambda: single, [0], seed=0), PPOConfig(batch_size=steps, n_environments=1)
    )
    collector.reset()
    rollout, _ = collector.collect(policy, steps, torch.Generator().manual_seed(0))
    return Trajectories(
        observations=rollout.observations.numpy(),
        actions=rollout.actions.numpy(),
        rewards=rollout.rewards[..., 0].numpy(),
        terminated=rollout.terminated.numpy(),
        log_probs=rollout.log_probs.numpy(),
        final_observations=collector.seen.numpy(),
        truncated=rollout.truncated.numpy(),
    )
