"""A family's tasks as a Gymnasium environment, and as the asynchronous environment of a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from loomos.errors import InvalidInput
from loomos.manifest import EnvironmentType, field_errors
from loomos.rl.environments.config import LEVELS, EnvironmentConfig
from loomos.rl.environments.curriculum import Curriculum
from loomos.rl.environments.families import FAMILIES
from loomos.rl.environments.task import ACTIONS, OBSERVATION_SIZE, Task, Verdict


class FamilyEnvironment(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Registered as `loomos/<Name>-v0`; an episode is a task."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"]}  # type: ignore[misc]

    def __init__(
        self,
        family: str,
        config: EnvironmentConfig | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Make one.

        Args:
            family: such as `math`.
            config: its settings, or a dictionary of them.
            render_mode: `ansi` to have `render` give the prompt.
            settings: settings one by one instead.

        Raises:
            InvalidInput: there is no such family or setting; names it.
        """
        self._family = make_family(family, config if config is not None else settings)
        self.config = self._family.config
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-1, 1, (OBSERVATION_SIZE,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        level = LEVELS[self.config.difficulty]
        ladder = self.config.curriculum
        highest = level if ladder and level > LEVELS[ladder.start_difficulty] else 1.0
        self.curriculum = Curriculum(ladder, highest) if ladder else None
        self._level = level
        self.task: Task | None = None
        self._steps = 0

    @property
    def level(self) -> float:
        """How hard the next task is, from 0 to 1."""
        return self.curriculum.level if self.curriculum else self._level

    def make_task(self, seed: int) -> Task:
        """The task of a seed, at the present level, apart from the episode under way."""
        made: Task = self._family.make(self.level, np.random.default_rng(seed))
        return made

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a task; the same seed at the same level is the same task."""
        super().reset(seed=seed)
        self.task = self._family.make(self.level, self.np_random)
        self._steps = 0
        return self.task.observe(), {"kind": self.task.kind, "level": self.level}

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one of the 16 actions."""
        if self.task is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        return self._after(self.task.act(int(action)), self.task)

    def reply(self, completion: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a language model's words instead of an action.

        Returns:
            What it is told next, the reward, whether the task is done or cut, and facts.
        """
        if self.task is None:
            raise gymnasium.error.ResetNeeded("call reset before the first reply")
        verdict = self.task.reply(completion)
        _, reward, over, cut, facts = self._after(verdict, self.task)
        return verdict.message, reward, over, cut, facts

    def _after(
        self, verdict: Verdict, task: Task
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        cut = not verdict.is_over and self._steps >= self.config.max_steps
        if self.curriculum and (verdict.is_over or cut):
            self.curriculum.note(verdict.is_correct)
        facts = {"is_correct": verdict.is_correct, "share": verdict.share, **verdict.facts}
        return task.observe(), self.reward(verdict), verdict.is_over, cut, facts

    @property
    def turns(self) -> int:
        """Replies that a conversation about a task may have."""
        turns: int = self.config.max_steps
        return turns

    def reward(self, verdict: Verdict) -> float:
        """What a verdict is worth."""
        shaping = self.config.reward_shaping
        worth: float = shaping.step_penalty
        if verdict.is_over and verdict.is_correct:
            worth += shaping.correct_bonus
        elif verdict.is_over and shaping.partial_credit:
            worth += 0.9 * verdict.share * shaping.correct_bonus
        return worth

    def render(self) -> str | None:
        """The task's prompt, in mode `ansi`."""
        return self.task.prompt if self.task and self.render_mode == "ansi" else None


def make_family(name: str, settings: EnvironmentConfig | Mapping[str, Any]) -> Any:
    """A family with its settings.

    Raises:
        InvalidInput: there is no such family or setting; names it.
    """
    if name not in set(EnvironmentType):
        raise InvalidInput(f"no environment {name!r}; there are {', '.join(EnvironmentType)}")
    family = FAMILIES[EnvironmentType(name)]
    given = settings.model_dump() if isinstance(settings, EnvironmentConfig) else dict(settings)
    try:
        return family(family.config_type.model_validate(given))
    except ValidationError as error:
        faults = field_errors(error.errors(), family.config_type, given)
        raise InvalidInput(f"environment {name}: {'; '.join(map(str, faults))}", faults) from None


class LoomEnvironment:
    """An environment of `LoomRLGym`: `reset` and `step` to be awaited, four values a step."""

    def __init__(self, name: str, environment: gymnasium.Env[Any, Any]) -> None:
        self.name = name
        self.gymnasium = environment
        self.action_space: Any = environment.action_space
        self.observation_space: Any = environment.observation_space

    async def reset(self, seed: int | None = None) -> NDArray[np.float32]:
        """Begin an episode; its first observation."""
        observation, self.info = self.gymnasium.reset(seed=seed)
        return np.asarray(observation)

    async def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, dict[str, Any]]:
        """(observation, reward, done, info); `info["truncated"]` tells a cut from an end."""
        observation, reward, over, cut, info = self.gymnasium.step(action)
        return np.asarray(observation), float(reward), over or cut, {**info, "truncated": cut}

    async def close(self) -> None:
        """Let go of it."""
        self.gymnasium.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentInfo:
    """What one may want to know of an environment."""

    name: str
    """As `create_environment` takes it."""
    summary: str
    """What one does in it."""
    observation_size: int
    """Numbers that a policy network sees."""
    actions: int
    """Actions that it has."""
    settings: dict[str, Any]
    """JSON schema of the settings."""
