"""`LoomRLGym`: makes environments, lists them, tells about them, measures them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from loomos.errors import InvalidInput
from loomos.rl.environments import IDS, EnvironmentInfo, EnvironmentType, LoomEnvironment
from loomos.rl.environments.families import FAMILIES
from loomos.rl.environments.task import ACTIONS, OBSERVATION_SIZE


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkResults:
    """How fast an environment is, and how far chance gets in it."""

    name: str
    """Which environment."""
    episodes: int
    """Episodes of random actions."""
    steps_per_s: float
    """Steps a second of processor time."""
    mean_return: float
    """Mean return of random actions."""
    solved: float
    """Share of episodes that random actions solved."""


class LoomRLGym:
    """The environments of this process."""

    def __init__(self) -> None:
        self._made: list[LoomEnvironment] = []

    async def __aenter__(self) -> LoomRLGym:
        await self.initialize()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cleanup()

    async def initialize(self) -> None:
        """Load the families, which `create_environment` would do one by one."""
        for name in FAMILIES:
            assert FAMILIES[name].name == name

    async def cleanup(self) -> None:
        """Close every environment that it made."""
        for environment in self._made:
            await environment.close()
        self._made.clear()

    async def create_environment(
        self, env_type: EnvironmentType | str, config: Mapping[str, Any] | None = None
    ) -> LoomEnvironment:
        """Make an environment.

        Args:
            env_type: which.
            config: its settings, such as `{"difficulty": "advanced"}`.

        Raises:
            InvalidInput: there is no such environment or setting; names it.
        """
        name = _known(env_type)
        made = gymnasium.make(IDS[name], config=dict(config or {}), disable_env_checker=True)
        environment = LoomEnvironment(name, made.unwrapped)
        self._made.append(environment)
        return environment

    async def list_environments(self) -> list[str]:
        """Names of all environments."""
        return self.get_available_environment_types()

    def get_available_environment_types(self) -> list[str]:
        """Names of all environments."""
        return [str(name) for name in EnvironmentType]

    async def get_environment_info(self, env_name: EnvironmentType | str) -> EnvironmentInfo:
        """What an environment is about, and its settings.

        Raises:
            InvalidInput: there is none of this name.
        """
        name = _known(env_name)
        family = FAMILIES[name]
        return EnvironmentInfo(
            name=str(name),
            summary=family.summary,
            observation_size=OBSERVATION_SIZE,
            actions=ACTIONS,
            settings=family.config_type.model_json_schema(),
        )

    async def benchmark_environment(
        self,
        env_name: EnvironmentType | str,
        *,
        episodes: int = 100,
        config: Mapping[str, Any] | None = None,
    ) -> BenchmarkResults:
        """Act at random for some episodes.

        Raises:
            InvalidInput: there is none of this name.
        """
        environment = await self.create_environment(env_name, config)
        random = np.random.default_rng(0)
        steps, solved, total = 0, 0, 0.0
        began = time.process_time()
        for episode in range(episodes):
            await environment.reset(seed=episode)
            done = False
            while not done:
                _, reward, done, info = await environment.step(int(random.integers(ACTIONS)))
                steps, total = steps + 1, total + reward
            solved += bool(info["is_correct"])
        seconds = time.process_time() - began
        return BenchmarkResults(
            name=environment.name,
            episodes=episodes,
            steps_per_s=steps / seconds,
            mean_return=total / episodes,
            solved=solved / episodes,
        )


def _known(name: EnvironmentType | str) -> EnvironmentType:
    if name not in set(EnvironmentType):
        raise InvalidInput(f"no environment {str(name)!r}; there are {', '.join(EnvironmentType)}")
    return EnvironmentType(name)
