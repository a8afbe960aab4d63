"""A task: one episode of any family, with its two faces.

To a policy network a task is 64 numbers and 16 actions; to a language model it is a prompt, and
replies. Both end in the same judgement. A family makes tasks from a level and a random generator,
so the same seed is the same task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from loomos.manifest import EnvironmentType
from loomos.rl.environments.config import EnvironmentConfig

OBSERVATION_SIZE = 64
"""Numbers that a policy network sees, each from -1 to 1; the same in all families."""

ACTIONS = 16
"""Actions that it has; those that mean nothing in a task change nothing."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an action or a reply led to."""

    is_over: bool = False
    """Whether the task is done."""
    is_correct: bool = False
    """Whether it is done as asked."""
    share: float = 0.0
    """How much of it is right, from 0 to 1; 1 only if it is correct."""
    message: str = ""
    """What a language model is told next, in a task of several turns."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For people and reports, such as what a sandbox stopped."""


class Task(ABC):
    """One episode. It changes as it is acted on."""

    kind: str
    """Which of the family's problem types."""
    prompt: str
    """What a language model is told first."""
    media: ClassVar[dict[str, NDArray[Any]]] = {}
    """Images [H, W, 3] uint8 and sounds [samples] float32 that the prompt speaks of."""

    messages: list[dict[str, str]] | None = None
    """The conversation so far, where it is more than the prompt as a user's message."""

    may_be_cut: ClassVar[bool] = False
    """Whether a prompt that leaves no room for a reply loses its beginning."""

    has_turns: ClassVar[bool] = False
    """Whether it goes on after a reply. Where it does not, a reply changes nothing, and many may be
    judged by the same task."""

    @abstractmethod
    def observe(self) -> NDArray[np.float32]:
        """The state for a policy network, [64]."""

    @abstractmethod
    def act(self, action: int) -> Verdict:
        """Take one of the 16 actions."""

    @abstractmethod
    def reply(self, completion: str) -> Verdict:
        """Take a language model's words."""

    @abstractmethod
    def solution(self) -> list[int]:
        """Actions that do what is asked, from the beginning."""

    @abstractmethod
    def right_replies(self) -> list[str]:
        """Replies that do what is asked, from the beginning."""


ConfigT = TypeVar("ConfigT", bound=EnvironmentConfig)


class Family(ABC, Generic[ConfigT]):
    """Makes tasks."""

    name: ClassVar[EnvironmentType]
    """Which family."""
    summary: ClassVar[str]
    """What one does in it, in a sentence."""
    config_type: ClassVar[type[EnvironmentConfig]]
    """Its settings."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def make(self, level: float, random: np.random.Generator) -> Task:
        """A task.

        Args:
            level: how hard, from 0 to 1.
            random: all chance in it.
        """


def pad(*parts: NDArray[Any] | list[float]) -> NDArray[np.float32]:
    """Join parts, cut to -1 and 1, fill up with zeros to what a policy network sees."""
    joined = np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])
    assert len(joined) <= OBSERVATION_SIZE, f"{len(joined)} numbers do not fit"
    seen = np.zeros(OBSERVATION_SIZE, np.float32)
    seen[: len(joined)] = np.clip(joined, -1, 1)
    return seen


def one_hot(index: int, size: int) -> NDArray[np.float32]:
    """All zero but a one."""
    found = np.zeros(size, np.float32)
    found[index] = 1
    return found


def spread(low: float, high: float, level: float) -> int:
    """A whole number between two by level."""
    return round(low + (high - low) * level)
