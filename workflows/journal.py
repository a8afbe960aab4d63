"""What a job tells people: state, timeline, attempts, progress, and the table in Temporal's UI."""

from __future__ import annotations

from collections.abc import Callable

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.cluster import Lease
    from loomos.jobs.states import JobState
    from loomos.jobs.training import (
        AttemptPlan,
        AttemptSummary,
        CarriedState,
        Progress,
        TimelineEntry,
    )
    from loomos.search_attributes import STATE
    from workflows.details import show_table
    from workflows.gang import GangEnd, GangFailed


KEPT_ENTRIES = 100
"""Timeline entries and attempts that a run remembers."""

Rows = list[tuple[str, str]]


class Journal:
    """Written by the workflow as it goes; read by queries and by whoever looks at the UI."""

    def __init__(self, carried: CarriedState, more: Callable[[], Rows]) -> None:
        """Go on from what an earlier run carried over.

        Args:
            carried: its timeline, attempts and progress.
            more: rows of the table that the workflow itself knows.
        """
        self.state = JobState.QUEUED
        self.message = "accepted"
        self.timeline = list(carried.timeline)
        self.attempts = list(carried.attempts)
        self.progress = carried.progress
        self._more = more

    def enter(self, state: JobState, message: str) -> None:
        """Go to a state: timeline, search attribute, current details."""
        changed = state != self.state or not self.timeline
        self.state, self.message = state, message
        last = self.timeline[-1].sequence if self.timeline else 0
        self.timeline.append(
            TimelineEntry(sequence=last + 1, at=workflow.now(), state=state, message=message)
        )
        del self.timeline[:-KEPT_ENTRIES]
        if changed and not (state == JobState.QUEUED and last == 0):
            workflow.upsert_search_attributes([STATE.value_set(state.value)])
        self.show()

    def open_attempt(self, plan: AttemptPlan, lease: Lease) -> int:
        """Note a new attempt; returns the step it should resume from."""
        first = plan.newest.step if plan.newest else 0
        self.attempts.append(
            AttemptSummary(
                generation=plan.generation,
                nodes=[node.node_id for node in lease.nodes],
                started_at=workflow.now(),
                from_step=first,
            )
        )
        return first

    def close_attempt(self, end: GangEnd | GangFailed) -> None:
        """Note how the newest attempt ended."""
        last = self.attempts.pop()
        if isinstance(end, GangEnd):
            outcome, step = (end.wish or "completed"), end.outcome.step if end.outcome else None
            if end.outcome is not None:
                known = self.progress or Progress(generation=last.generation)
                self.progress = known.model_copy(
                    update={
                        "generation": last.generation,
                        "step": end.outcome.step,
                        "total_steps": end.outcome.total_steps,
                        "loss": end.outcome.loss,
                        "validation_loss": end.outcome.validation_loss,
                        "resumed_from": end.outcome.resumed_from,
                        "skipped": end.outcome.skipped,
                        "episode_return": end.outcome.episode_return,
                    }
                )
        else:
            outcome = end.reason
            told = self.progress.step if self.progress else 0
            step = max(told, end.step or 0) or None
            if self.progress is not None and step is not None:
                self.progress = self.progress.model_copy(update={"step": step})
        self.attempts.append(last.model_copy(update={"outcome": outcome, "to_step": step}))
        del self.attempts[:-KEPT_ENTRIES]

    def hear(self, progress: Progress) -> bool:
        """Take in progress of the newest attempt; says whether it was that."""
        if not self.attempts or progress.generation != self.attempts[-1].generation:
            return False
        self.progress = progress
        if self.state == JobState.STARTING and progress.step:
            resumed = progress.resumed_from
            skipped = "".join(
                f"; checkpoint of step {ref.step} is damaged and was passed over"
                for ref in progress.skipped
            )
            self.enter(
                JobState.RUNNING,
                (f"resumed from step {resumed.step}" if resumed else "started from the beginning")
                + skipped,
            )
        self.show()
        return True

    def show(self) -> None:
        """Put the table on the run's page in Temporal's UI."""
        rows: Rows = [("state", f"**{self.state}**: {self.message}")]
        if self.progress is not None:
            rows.append(("step", f"{self.progress.step} of {self.progress.total_steps or '?'}"))
            if self.progress.loss is not None:
                rows.append(("loss", f"{self.progress.loss:.4f}"))
            if self.progress.checkpoint_step is not None:
                rows.append(("checkpoint", f"step {self.progress.checkpoint_step}"))
        if self.attempts:
            rows.append(("attempt", str(self.attempts[-1].generation)))
        show_table(rows + self._more())
