"""How jobs are shown: what repeats itself once, progress in words that fit its kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from loomos.cli.job_progress import Pace, progress_facts
from loomos.cli.job_view import folded_attempts, folded_timeline
from loomos.jobs.states import JobState
from loomos.jobs.training import AttemptSummary, TimelineEntry

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def attempt(number: int, outcome: str = "rank 0: killed", to_step: int = 0) -> AttemptSummary:
    return AttemptSummary(
        generation=number, nodes=["node-1"], started_at=NOON, to_step=to_step, outcome=outcome
    )


def test_attempts_in_a_row_that_came_to_the_same_are_one_row() -> None:
    rows = folded_attempts(
        [attempt(1, to_step=10), *(attempt(n) for n in range(2, 9)), attempt(9, "completed", 50)]
    )
    assert [(row[0], row[3], row[4]) for row in rows] == [
        (1, 10, "rank 0: killed"),
        ("2-8 (7 times)", 0, "rank 0: killed"),
        (9, 50, "completed"),
    ]


def test_a_timeline_that_goes_in_circles_is_told_once() -> None:
    circle = [(JobState.RECOVERING, "lost"), (JobState.STARTING, "starts")]
    said = [(JobState.QUEUED, "waits"), *circle * 5, (JobState.RUNNING, "started")]
    timeline = [
        TimelineEntry(sequence=n, at=NOON + timedelta(minutes=n), state=state, message=message)
        for n, (state, message) in enumerate(said)
    ]
    assert [row[2] for row in folded_timeline(timeline)] == [
        "waits",
        "lost",
        "starts",
        "these 2 again, 5 times in all",
        "started",
    ]


def test_the_rest_is_told_by_the_pace_also_after_a_recovery() -> None:
    pace = Pace()
    assert pace.left(10, 110, 100.0) is None
    assert pace.left(20, 110, 110.0) == timedelta(seconds=90)
    assert pace.left(5, 110, 120.0) is None
    assert pace.left(10, 110, 122.5) == timedelta(seconds=50)


def test_the_bar_tells_reward_where_there_is_one() -> None:
    training = {"step": 3, "total_steps": 9, "loss": -0.0004, "tokens_per_s": 1203.4}
    assert progress_facts({"training": training}, Pace()) == "3/9  loss -0.0004  1203 tokens/s"
    training |= {"episode_return": 187.333, "tokens_per_s": None, "environment_steps_per_s": 900.1}
    assert progress_facts({"training": training}, Pace()) == "3/9  reward 187.3  900 steps/s"
