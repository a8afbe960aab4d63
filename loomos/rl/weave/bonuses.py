"""Bonuses for what is new: streams of rewards that a policy gives itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from loomos.rl.networks import perceptron
from loomos.rl.normalizing import ObservationScale, RewardScale
from loomos.rl.pool import Arrays
from loomos.rl.rollouts import Rollout

HASH_BITS = 62
FEATURES = 32
NOVELTY_LEARNING_RATE = 1e-3


class CountBonus:
    """1 / sqrt(N(s, a)) with states told apart by the signs of random projections.

    Tang et al. 2017 (arXiv:1611.04717, static hashing); with actions, the bonus of UCB.
    """

    def __init__(self, observation_size: int, seed: int) -> None:
        random = np.random.default_rng((seed, 7))
        self._projection = random.normal(size=(observation_size, HASH_BITS))
        self._counts: dict[bytes, int] = {}

    def of(self, rollout: Rollout) -> Tensor:
        """Count the rollout's steps, in order; the bonus of each, [T, N]."""
        seen = rollout.observations.flatten(0, 1).numpy().astype(np.float64)
        signs = np.packbits(seen @ self._projection > 0, axis=1)
        actions = rollout.actions.flatten(0, 1).numpy()
        whole = actions if actions.ndim == 1 else np.round(actions * 4).astype(np.int8)
        found = np.empty(len(signs), np.float32)
        for row, sign in enumerate(signs):
            key = sign.tobytes() + np.asarray(whole[row]).tobytes()
            count = self._counts.get(key, 0) + 1
            self._counts[key] = count
            found[row] = count**-0.5
        return torch.from_numpy(found).view(rollout.log_probs.shape)

    def state(self) -> Arrays:
        """What `load` needs."""
        width = len(next(iter(self._counts), b""))
        keys = np.frombuffer(b"".join(self._counts), np.uint8).reshape(-1, max(1, width))
        return {"keys": keys.copy(), "counts": np.asarray(list(self._counts.values()), np.int64)}

    def load(self, state: Arrays) -> None:
        """Go on from what `state` gave."""
        keys = (bytes(row) for row in state["keys"])
        self._counts = {k: int(n) for k, n in zip(keys, state["counts"], strict=True)}


class NoveltyBonus(nn.Module):
    """How badly a network predicts what a fixed random one makes of a state.

    Random network distillation, Burda et al. 2019 (arXiv:1810.12894). The predictor learns from
    every rollout once.
    """

    def __init__(self, observation_size: int, hidden: list[int], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 77)
            options: dict[str, Any] = {"activation": "relu", "gain": 1.0}
            self.target = perceptron(observation_size, hidden, FEATURES, **options)
            self.predictor = perceptron(observation_size, hidden, FEATURES, **options)
        self.target.requires_grad_(False)
        self._scale = ObservationScale(observation_size)
        self._optimizer = torch.optim.SGD(
            self.predictor.parameters(), lr=NOVELTY_LEARNING_RATE, momentum=0.0
        )

    def of(self, rollout: Rollout) -> Tensor:
        """The error at what each step led to, [T, N], before learning from it."""
        assert rollout.next_observations is not None
        led_to = rollout.next_observations.flatten(0, 1).numpy()
        self._scale.moments.add(led_to)
        seen = torch.from_numpy(self._scale(led_to))
        with torch.no_grad():
            wanted = self.target(seen)
            errors = (self.predictor(seen) - wanted).square().mean(-1)
        for rows in torch.split(torch.arange(len(seen)), 64):
            loss = (self.predictor(seen[rows]) - wanted[rows]).square().mean() * FEATURES
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
        found: Tensor = errors.view(rollout.log_probs.shape)
        return found

    def state(self) -> Arrays:
        """What `load` needs; the target is a function of the seed."""
        found: Arrays = {n: p.detach().numpy().copy() for n, p in self.predictor.named_parameters()}
        return {**found, "scale": self._scale.moments.state()}

    def load(self, state: Arrays) -> None:
        """Go on from what `state` gave."""
        self._scale.moments.load(state["scale"])
        with torch.no_grad():
            for name, parameter in self.predictor.named_parameters():
                parameter.copy_(torch.from_numpy(state[name]))


class BonusScale:
    """A bonus divided by the deviation of its discounted return, as RND has it."""

    def __init__(self, count: int, gamma: float) -> None:
        self._scale = RewardScale(count, gamma)
        self._never: NDArray[np.bool_] = np.zeros(count, np.bool_)

    def __call__(self, bonus: Tensor) -> Tensor:
        """Scale [T, N], learning from it first."""
        rows = bonus.numpy().astype(np.float64)
        for row in rows:
            self._scale(row, self._never)
        deviation = float(np.sqrt(self._scale.moments.variance[0] + 1e-8))
        return torch.from_numpy((rows / deviation).astype(np.float32))

    def state(self) -> Arrays:
        """What `load` needs."""
        return {"moments": self._scale.moments.state(), "returns": self._scale.returns.copy()}

    def load(self, state: Arrays) -> None:
        """Go on from what `state` gave."""
        self._scale.moments.load(state["moments"])
        self._scale.returns = state["returns"].copy()
