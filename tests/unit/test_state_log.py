"""Timelines have an end, and their entries keep their numbers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from temporalio import workflow

from loomos.jobs.states import JobState
from loomos.jobs.training import TimelineEntry
from workflows.state_log import KEPT_ENTRIES, StateLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_timeline_keeps_its_newest_entries_over_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "now", lambda: NOW)
    for name in ("set_current_details", "upsert_search_attributes"):
        monkeypatch.setattr(workflow, name, lambda _: None)
    carried: list[TimelineEntry] = []
    for run in range(5):
        log = StateLog(TimelineEntry, carried, JobState.QUEUED, NOW, list)
        for number in range(KEPT_ENTRIES - 10):
            log.note(f"{run}/{number}")
        carried = log.timeline
    told = 5 * (KEPT_ENTRIES - 10)
    assert [entry.sequence for entry in carried] == list(range(told - KEPT_ENTRIES + 1, told + 1))
    assert carried[-1].message == "4/89"
