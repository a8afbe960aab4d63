"""How `loomos jobs describe` shows a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loomos.cli.output import ago, print_facts, print_table

if TYPE_CHECKING:
    from loomos.client.models import JobDetail
    from loomos.jobs.training import AttemptSummary, TimelineEntry

SHOWN = 30
"""Lines of the timeline that are shown; `-o json` has all."""
LONGEST_CYCLE = 4
"""States that a run which fails again and again goes through each time."""


def print_job(job: JobDetail) -> None:
    """Print everything about a job."""
    training = job.training
    is_rewarded = bool(job.spec.get("environment")) or bool(
        training and training.episode_return is not None
    )
    evaluated = None
    if training and training.validation_loss is not None:
        evaluated = -training.validation_loss
    print_facts(
        [
            ("job", job.job_id),
            ("state", job.current_stage),
            ("asked for", job.asked),
            ("queue", f"number {job.queued.position}: {job.queued.reason}" if job.queued else None),
            ("progress", f"{job.progress:.3g} %"),
            ("step", f"{training.step} of {training.total_steps}" if training else None),
            ("loss", None if is_rewarded else training and training.loss),
            ("validation loss", None if is_rewarded else training and training.validation_loss),
            ("mean reward", training and training.episode_return),
            ("mean reward, best actions", evaluated if is_rewarded else None),
            ("checkpoint", training and training.checkpoint_step),
            ("model", job.model),
            ("owner", job.owner),
            ("project", job.project),
            ("labels", ", ".join(f"{k}={v}" for k, v in job.labels.items())),
            ("priority", job.priority),
            ("created", ago(job.created_at)),
            ("temporal", job.temporal_url),
        ]
    )
    if job.attempts:
        print()
        print_table(
            ("ATTEMPT", "NODES", "FROM STEP", "TO STEP", "OUTCOME"), folded_attempts(job.attempts)
        )
    print()
    print_table(("TIME", "STATE", "WHAT HAPPENED"), folded_timeline(job.timeline)[-SHOWN:])


def folded_attempts(attempts: Sequence[AttemptSummary]) -> list[tuple[object, ...]]:
    """Attempts, those in a row that came to the same as one row."""
    groups: list[list[AttemptSummary]] = []
    for attempt in attempts:
        if groups and _course(groups[-1][-1]) == _course(attempt):
            groups[-1].append(attempt)
        else:
            groups.append([attempt])
    rows: list[tuple[object, ...]] = []
    for group in groups:
        first, last = group[0], group[-1]
        many = f"{first.generation}-{last.generation} ({len(group)} times)"
        nodes = dict.fromkeys(node for attempt in group for node in attempt.nodes)
        rows.append(
            (
                first.generation if first is last else many,
                ", ".join(nodes),
                first.from_step,
                first.to_step,
                first.outcome,
            )
        )
    return rows


def folded_timeline(timeline: Sequence[TimelineEntry]) -> list[tuple[str, str, str]]:
    """Times, states and messages; what repeats itself is there once, with how often."""
    rows: list[tuple[str, str, str]] = []
    start = 0
    while start < len(timeline):
        size, times = _cycle(timeline, start)
        for entry in timeline[start : start + size]:
            rows.append((f"{entry.at.astimezone():%H:%M:%S}", entry.state, entry.message))
        start += size * times
        if times > 1:
            until = timeline[start - 1].at.astimezone()
            what = "this" if size == 1 else f"these {size}"
            rows.append((f"{until:%H:%M:%S}", "", f"{what} again, {times} times in all"))
    return rows


def _course(attempt: AttemptSummary) -> tuple[object, ...]:
    return attempt.from_step, attempt.to_step, attempt.outcome


def _cycle(timeline: Sequence[TimelineEntry], start: int) -> tuple[int, int]:
    """Length of what repeats itself from here on, and how often it is there."""
    said = [(entry.state, entry.message) for entry in timeline[start:]]
    for size in range(1, LONGEST_CYCLE + 1):
        times = 1
        while said[times * size : (times + 1) * size] == said[:size]:
            times += 1
        if times > 1:
            return size, times
    return 1, 1
