"""A policy that learns by PPO, as a learner of the durable loop.

A step of the run is a batch of experience and the update by it. A checkpoint holds the network and
the optimizer, and of each rank its random state and its copies of the environment: how many
episodes each has had, and the actions of the one under way.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from loomos.errors import LossDiverged
from loomos.jobs.training import TrainAssignment
from loomos.manifest import PPOConfig, WeaveConfig
from loomos.rl.evaluation import mean_return
from loomos.rl.making import environment_maker
from loomos.rl.policies import load_into, read_policy
from loomos.rl.pool import EnvironmentPool, Make
from loomos.rl.practice import Practice
from loomos.rl.threads import with_threads
from loomos.training.inputs import InputCache
from loomos.training.learner import Learner
from loomos.training.model_state import load_model_state, model_state
from loomos.training.setup import Workplace
from loomos.training.shards import CheckpointManifest, TensorDict, own_prefix

NEWEST_EPISODES = 100
"""Episodes whose mean return is reported."""


class PolicyLearner(Learner):
    """One rank's share of the copies; gradients are averaged over ranks."""

    def __init__(self, place: Workplace) -> None:
        job = place.job
        assert job.spec.environment is not None
        self._config = config = self._settings(job)
        self._control, self._rank, self._world = place.control, place.rank, place.world
        self.total_steps = config.updates
        self.evaluates = config.evaluate_episodes > 0
        self.evaluate_every = config.evaluate_every or max(1, self.total_steps // 10)
        self._make = environment_maker(job.spec.environment)
        count = config.n_environments // self._world
        copies = range(self._rank * count, (self._rank + 1) * count)
        self._pool = EnvironmentPool(self._rewarded(self._make), copies, seed=config.seed)
        self._generator = torch.Generator()
        share = config.model_copy(
            update={"minibatch_size": max(1, config.minibatch_size // self._world)}
        )
        self._practice = Practice(
            self._pool,
            share,
            generator=self._generator,
            average=self._average if self._world > 1 else None,
        )
        self._ppo, self._collector = self._practice.learner, self._practice.collector
        if job.spec.policy is not None:
            self._start_from(place)
        self._returns: deque[float] = deque(maxlen=NEWEST_EPISODES)
        self._metrics: list[str] = []

    def _settings(self, job: TrainAssignment) -> PPOConfig:
        return job.spec.ppo

    def _rewarded(self, make: Make) -> Make:
        return make

    def _start_from(self, place: Workplace) -> None:
        """Have the weights of a published policy, and its scale; the optimizer begins anew."""
        context = place.context
        cache = InputCache(place.store, context.storage, context.scratch / "inputs")
        saved = read_policy(cache.folder(place.job.inputs.model))
        load_into(self._ppo.agent, saved.weights, place.job.inputs.base_version)
        if self._collector.scale is not None and saved.scale is not None:
            self._collector.scale.moments.load(saved.scale.numpy())

    def _average(self, values: Tensor) -> None:
        dist.all_reduce(values, group=self._control)
        values /= self._world

    def close(self) -> None:
        """Close the environments."""
        self._pool.close()

    # --- state ---

    def prepare(self) -> str:
        """Begin the first episodes."""
        self._generator.manual_seed(self._config.seed * 1_000_003 + self._rank)
        self._collector.reset()
        trained = sum(parameter.numel() for parameter in self._ppo.parameters)
        return f"{trained} trained parameters, {len(self._pool)} environments"

    def tensors(self, *, with_random: bool = True) -> TensorDict:
        """Network and optimizer; and this rank's random state and environments."""
        state = model_state(self._ppo.agent, self._ppo.optimizer)
        if with_random:
            own = {name: torch.from_numpy(a) for name, a in self._collector.snapshot().items()}
            own["generator"] = self._generator.get_state()
            own["newest_returns"] = torch.tensor(list(self._returns), dtype=torch.float64)
            own |= {f"ppo.{name}": torch.from_numpy(a) for name, a in self._ppo.state().items()}
            state |= {own_prefix(self._rank) + name: tensor for name, tensor in own.items()}
        return state

    def restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        """See base class. With other ranks than before, episodes begin anew, with new seeds."""
        load_model_state(self._ppo.agent, self._ppo.optimizer, state)
        prefix = own_prefix(self._rank)
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if manifest.world_size != self._world:
            seed = self._config.seed * 1_000_003 + manifest.step * 1009
            self._generator.manual_seed(seed + self._rank)
            self._pool.reseed(seed)
            self._collector.reset()
            return
        self._generator.set_state(own.pop("generator"))
        self._returns.extend(own.pop("newest_returns").tolist())
        arrays = {name: np.asarray(tensor) for name, tensor in own.items()}
        self._ppo.load(
            {k.removeprefix("ppo."): v for k, v in arrays.items() if k.startswith("ppo.")}
        )
        self._collector.restore(arrays)

    # --- steps ---

    def begin(self) -> list[float]:
        """Nothing is needed of other ranks."""
        return []

    def step(self, step: int, totals: list[float]) -> list[float]:
        """Act for a batch, learn from it; means of the update, and the newest returns."""
        metrics, episodes = self._practice.update(step)
        self._returns.extend(episodes.returns)
        self._metrics = list(metrics)
        means = [value / self._world for value in metrics.values()]
        return [*means, math.fsum(self._returns), float(len(self._returns))]

    def measure(self, step: int, totals: list[float]) -> dict[str, float | int | None] | None:
        """See base class."""
        *means, returns, episodes = totals
        found = dict(zip(self._metrics, means, strict=True))
        if not math.isfinite(found["loss"]):
            raise LossDiverged(
                f"the loss is {found['loss']} at update {step}; lower ppo.learning_rate"
            )
        numbers = {name: value for name, value in found.items() if math.isfinite(value)}
        return {
            **numbers,
            "episode_return": returns / episodes if episodes else None,
            "environment_steps": self._config.batch_size,
        }

    def evaluate(self) -> float:
        """Minus the mean return of the likeliest actions, in episodes that are always the same."""
        rank_share = range(self._rank, self._config.evaluate_episodes, self._world)
        mean = mean_return(
            self._make,
            self._ppo.agent,
            self._collector.scale,
            episodes=list(rank_share),
            seed=self._config.seed,
        )
        sums = torch.tensor([mean * len(rank_share), len(rank_share)], dtype=torch.float64)
        dist.all_reduce(sums, group=self._control)
        return -float(sums[0] / sums[1])


class WeaveLearner(PolicyLearner):
    """The same with WEAVE; each rank has bonuses of its own."""

    def _settings(self, job: TrainAssignment) -> PPOConfig:
        return job.spec.weave

    def _rewarded(self, make: Make) -> Make:
        assert isinstance(self._config, WeaveConfig)
        return with_threads(make, self._config.reward_threads)
