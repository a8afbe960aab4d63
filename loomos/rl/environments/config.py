"""Settings of the environments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from loomos.manifest import DIFFICULTIES, Difficulty, Document

LEVELS: dict[str, float] = {
    name: place / (len(DIFFICULTIES) - 1) for place, name in enumerate(DIFFICULTIES)
}
"""Each difficulty as a level from 0 to 1, which tasks are made by."""


class RewardShaping(Document):
    """What steps and answers are worth."""

    step_penalty: Annotated[float, Field(le=0)] = 0.0
    """Added at each step."""
    correct_bonus: Annotated[float, Field(gt=0)] = 1.0
    """For the right answer."""
    partial_credit: bool = False
    """Whether an answer that is right in part gets that part of nine tenths of the bonus."""


class CurriculumConfig(Document):
    """Tasks get harder as they are solved."""

    start_difficulty: Difficulty = "beginner"
    """Where it starts."""
    progression_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How much harder at a time; the whole way from beginner to expert is 1."""
    success_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the newest episodes that must have been solved for that."""
    window: Annotated[int, Field(ge=1)] = 20
    """Episodes that are looked at."""


class EnvironmentConfig(Document):
    """What every family understands."""

    difficulty: Difficulty = "beginner"
    """How hard tasks are; with a curriculum, how hard they may get unless it is `beginner`."""
    max_steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Steps, or turns of a conversation, after which an episode is cut."""
    reward_shaping: RewardShaping = RewardShaping()
    """What steps and answers are worth."""
    curriculum: CurriculumConfig | None = None
    """Begin easily and get harder."""


MathKind = Literal[
    "arithmetic", "algebra", "calculus", "statistics", "geometry", "number_theory", "logic"
]


class MathConfig(EnvironmentConfig):
    """Problems whose answers are numbers."""

    problem_types: Annotated[
        list[
            Literal[
                "arithmetic",
                "algebra",
                "calculus",
                "statistics",
                "geometry",
                "number_theory",
                "logic",
            ]
        ],
        Field(min_length=1),
    ] = ["arithmetic"]
    """What they are about."""
    terse: bool = False
    """Ask in the fewest words, such as `3 + 4 =`; for very small language models."""


class GameConfig(EnvironmentConfig):
    """Games against an opponent that plays the better the harder it is."""

    problem_types: Annotated[
        list[Literal["tic_tac_toe", "connect_four", "nim", "kuhn_poker"]], Field(min_length=1)
    ] = ["tic_tac_toe"]
    """Which games."""


class ToolCallConfig(EnvironmentConfig):
    """A shop's records, changed by typed tools."""

    problem_types: Annotated[
        list[Literal["lookup", "cancel", "refund", "reorder"]], Field(min_length=1)
    ] = ["lookup", "cancel", "refund", "reorder"]
    """What customers ask for."""
    fault_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of calls that fail once, for no reason of the caller's."""


class CodeConfig(EnvironmentConfig):
    """Small programs, judged by running them."""

    languages: Annotated[list[Literal["python", "javascript", "sql"]], Field(min_length=1)] = [
        "python"
    ]
    """What they are written in."""
    task_types: Annotated[
        list[Literal["debugging", "optimization", "testing"]], Field(min_length=1)
    ] = ["debugging"]
    """`debugging`: mend it; `optimization`: do it in fewer steps; `testing`: write its tests."""
    code_style_requirements: bool = False
    """Whether Python must have lines of at most 100 columns, no tabs and no bare `except`."""
    execution_timeout: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Seconds that a program may run."""
    test_suite_coverage: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of planted faults that written tests must find."""


class LanguageConfig(EnvironmentConfig):
    """Sentences under constraints that can be checked."""

    problem_types: Annotated[
        list[Literal["length", "inclusion", "avoidance", "ordering"]], Field(min_length=1)
    ] = ["length", "inclusion", "avoidance", "ordering"]
    """What the constraints are about."""


class MultimodalConfig(EnvironmentConfig):
    """Questions about drawn images and synthetic sounds."""

    problem_types: Annotated[list[Literal["image", "audio"]], Field(min_length=1)] = [
        "image",
        "audio",
    ]
    """What is looked at or listened to."""
