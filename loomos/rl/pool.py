"""Copies of an environment, stepped together and exactly restorable.

Each episode is begun with a seed of its own, a function of the run's seed, the copy and the count
of episodes. What a Gymnasium environment does is then a function of that seed and the actions
since, so a snapshot is the count and the actions, and restoring plays them again. That holds for
every deterministic environment, such as Box2D's, which no copy or pickle captures. A curriculum
(`loomos.rl.environments.curriculum`) is kept as it was when the episode under way began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from loomos.errors import InvalidInput

Make = Callable[[], gymnasium.Env[Any, Any]]

Arrays = dict[str, NDArray[Any]]


class Stepped(NamedTuple):
    """What a step of all copies gave. An ended episode is followed by the next at once."""

    observations: NDArray[np.float32]
    """[N, D] to act on next; of a new episode where one ended."""
    rewards: NDArray[np.float64]
    """[N] or, where the environment gives several, [N, K]."""
    terminated: NDArray[np.bool_]
    """[N]."""
    truncated: NDArray[np.bool_]
    """[N]."""
    final_observations: NDArray[np.float32]
    """[N, D] that the step led to, before any reset."""
    infos: list[dict[str, Any]]
    """Of each copy."""


def episode_seed(seed: int, copy: int, episode: int) -> int:
    """The seed that an episode is begun with."""
    return int(np.random.SeedSequence((seed, copy, episode)).generate_state(1)[0] >> 1)


class EnvironmentPool:
    """Copies of an environment, each with a number that its seeds depend on."""

    def __init__(self, make: Make, copies: Sequence[int], *, seed: int) -> None:
        count = len(copies)
        self._environments = [make() for _ in copies]
        self.action_space = self._environments[0].action_space
        space = self._environments[0].observation_space
        self._flatten = _flattener(space)
        self.observation_size = int(gymnasium.spaces.flatdim(space))
        self._seed, self._copies = seed, list(copies)
        self._episodes = [0] * count
        self._actions: list[list[Any]] = [[] for _ in range(count)]
        self._clip = _clipper(self.action_space)
        self._ladders = [getattr(e.unwrapped, "curriculum", None) for e in self._environments]
        self._rungs = [np.zeros(0)] * count
        self.observations = np.zeros((count, self.observation_size), np.float32)
        """[N, D] to act on next."""

    def __len__(self) -> int:
        return len(self._environments)

    def reset(self) -> NDArray[np.float32]:
        """Begin the first episode of every copy; the observations [N, D]."""
        for copy in range(len(self)):
            self._episodes[copy] = 0
            self.observations[copy] = self._begin(copy)
        return self.observations

    def reseed(self, seed: int) -> None:
        """Begin episodes by another seed from now on."""
        self._seed = seed

    def step(self, actions: NDArray[Any]) -> Stepped:
        """Step every copy.

        Args:
            actions: [N] of a discrete space, [N, A] of a continuous one, where they are cut to
                its bounds.
        """
        count = len(self)
        following = np.empty_like(self.observations)
        final = np.empty_like(self.observations)
        rewards: list[Any] = [0.0] * count
        terminated, truncated = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        infos: list[dict[str, Any]] = [{}] * count
        for copy, action in enumerate(self._clip(actions)):
            environment = self._environments[copy]
            raw, rewards[copy], ended, cut, infos[copy] = environment.step(action)
            self._actions[copy].append(action)
            final[copy] = self._flatten(raw)
            if ended or cut:
                terminated[copy], truncated[copy] = ended, cut
                self._episodes[copy] += 1
                following[copy] = self._begin(copy)
            else:
                following[copy] = final[copy]
        self.observations = following
        return Stepped(
            following, np.asarray(rewards, np.float64), terminated, truncated, final, infos
        )

    def _begin(self, copy: int) -> NDArray[np.float32]:
        self._actions[copy] = []
        if (ladder := self._ladders[copy]) is not None:
            self._rungs[copy] = ladder.state()
        seed = episode_seed(self._seed, self._copies[copy], self._episodes[copy])
        observation, _ = self._environments[copy].reset(seed=seed)
        return self._flatten(observation)

    def snapshot(self) -> Arrays:
        """What `restore` needs: the seed, episodes so far, and actions of those under way."""
        flat = [action for actions in self._actions for action in actions]
        return {
            "seed": np.asarray([self._seed], np.int64),
            "episodes": np.asarray(self._episodes, np.int64),
            "lengths": np.asarray([len(actions) for actions in self._actions], np.int64),
            "actions": np.asarray(flat, self.action_space.dtype or np.float32),
            "rungs": np.concatenate(self._rungs),
            "rung_lengths": np.asarray([len(rungs) for rungs in self._rungs], np.int64),
        }

    def restore(self, snapshot: Arrays) -> None:
        """Come to the state of a snapshot by playing the episodes under way again.

        Raises:
            InvalidInput: the environment did not do the same again.
        """
        self._seed = int(snapshot["seed"][0])
        self._episodes = [int(n) for n in snapshot["episodes"]]
        start, rung = 0, 0
        for copy, length in enumerate(snapshot["lengths"]):
            following = rung + int(snapshot["rung_lengths"][copy])
            if (ladder := self._ladders[copy]) is not None:
                ladder.load(snapshot["rungs"][rung:following])
            rung = following
            played = list(snapshot["actions"][start : start + int(length)])
            start += int(length)
            self.observations[copy] = self._begin(copy)
            for action in played:
                if isinstance(action, np.integer):
                    action = int(action)
                raw, _, ended, cut, _ = self._environments[copy].step(action)
                if ended or cut:
                    raise InvalidInput(
                        "the environment is not deterministic: with the same seed and actions an "
                        "episode ended sooner, so a run in it cannot be resumed"
                    )
                self._actions[copy].append(action)
                self.observations[copy] = self._flatten(raw)

    def close(self) -> None:
        """Let go of the environments."""
        for environment in self._environments:
            environment.close()


def _flattener(space: gymnasium.Space[Any]) -> Callable[[Any], NDArray[np.float32]]:
    if isinstance(space, gymnasium.spaces.Box):
        return lambda raw: np.asarray(raw, np.float32).reshape(-1)
    return lambda raw: np.asarray(gymnasium.spaces.flatten(space, raw), np.float32)


def _clipper(space: gymnasium.Space[Any]) -> Callable[[NDArray[Any]], Any]:
    if isinstance(space, gymnasium.spaces.Discrete):
        start = int(space.start)
        return lambda actions: (actions + start).tolist() if start else actions.tolist()
    if isinstance(space, gymnasium.spaces.Box):
        low, high = space.low, space.high
        return lambda actions: np.clip(actions, low, high).astype(low.dtype)
    raise InvalidInput(
        f"the environment's actions are {space}; policies act in Discrete and Box spaces"
    )
