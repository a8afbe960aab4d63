"""Workflows whose waits and farewells are long keep within what one run may have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio import workflow

from loomos.jobs.states import JobState
from workflows import dependencies, training
from workflows.dependencies import MOST_DEPENDENTS, MOST_TOLD, Dependencies
from workflows.training import TrainingRun


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "patched", lambda _: True)


def test_only_so_many_dependents_are_remembered(patched: None) -> None:
    waited_for = Dependencies("victim", [], [])
    for number in range(10_000):
        waited_for.add(f"job-{number}")
    assert waited_for.dependents == [f"job-{number}" for number in range(MOST_DEPENDENTS)]


async def test_dependents_are_told_side_by_side_and_not_for_ever(
    patched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for = Dependencies("victim", [], [f"job-{number}" for number in range(MOST_DEPENDENTS)])
    told: list[str] = []
    at_once = [0, 0]

    async def signal(job_id: str, name: str, message: Any) -> None:
        assert (name, message.state) == ("dependency_ended", JobState.COMPLETED)
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0)
        at_once[0] -= 1
        told.append(job_id)
        waited_for.add(f"late-{len(told)}")

    monkeypatch.setattr(dependencies, "_signal", signal)
    await waited_for.tell(JobState.COMPLETED)
    assert told[:MOST_DEPENDENTS] == [f"job-{number}" for number in range(MOST_DEPENDENTS)]
    assert len(told) == MOST_DEPENDENTS and at_once[1] == MOST_TOLD


@pytest.mark.parametrize(("paused", "is_long", "ends"), [(0, 0, 1), (1, 0, 0), (1, 1, 1)])
async def test_a_pause_ends_when_the_run_is_long(
    paused: bool, is_long: bool, ends: bool, patched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    async def wait_condition(holds: Callable[[], bool]) -> None:
        asked.append(holds())

    info = SimpleNamespace(is_continue_as_new_suggested=lambda: is_long)
    monkeypatch.setattr(workflow, "info", lambda: info)
    monkeypatch.setattr(workflow, "wait_condition", wait_condition)
    journal = SimpleNamespace(enter=lambda state, message: None)
    job: Any = SimpleNamespace(_paused=bool(paused), _journal=journal)
    await TrainingRun._until_resumed(job)
    assert asked == ([bool(ends)] if paused else [])


@pytest.mark.parametrize("is_long", [False, True])
async def test_a_wait_for_nodes_ends_when_the_run_is_long(
    is_long: bool, patched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    async def acquire(until: Callable[[], bool]) -> None:
        asked.append(until())

    monkeypatch.setattr(training, "_is_long", lambda: is_long)
    journal = SimpleNamespace(enter=lambda state, message: None)
    leasing = SimpleNamespace(acquire=acquire)
    job: Any = SimpleNamespace(_paused=False, _failures=0, _journal=journal, _leasing=leasing)
    assert await TrainingRun._acquire(job) is None
    assert asked == [is_long]
