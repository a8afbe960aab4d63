"""What a trial reports on its way, and when it is given up."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from loomos.jobs.message import Message

MOST_REPORTS = 200
"""Most intermediate values of a trial; fewer where there are many trials."""


def _in_order(reports: list[tuple[int, float]]) -> list[tuple[int, float]]:
    steps = [step for step, _ in reports]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError("steps must rise")
    return reports


Reports = Annotated[
    list[tuple[int, float]], Field(max_length=MOST_REPORTS), AfterValidator(_in_order)
]
"""(step, value) pairs, steps rising."""


class Bar(Message):
    """What a trial must reach at a step to go on."""

    step: int
    """Where it is judged."""
    value: float | None = None
    """The worst value that goes on; None lets any pass."""


class PruningRule(Message):
    """When one trial is given up: fixed as it starts, from the results known then."""

    direction: Literal["minimize", "maximize"]
    """Which way is better."""
    judges: Literal["newest", "best"]
    """`newest`: each bar once, at the first report at or past its step, by that report's value.
    `best`: at reports of just that step, by the best value so far."""
    bars: list[Bar]
    """By step."""
    warmup_steps: int = 0
    """`best`: steps before the first look."""
    interval_steps: int = 1
    """`best`: steps between looks."""
