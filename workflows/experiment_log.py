"""Where an experiment is and what happened to it, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.experiments import CarriedSweep, ExperimentEvent, ExperimentState
    from loomos.search_attributes import STATE

SHOW_INTERVAL = timedelta(seconds=1)


class ExperimentLog:
    """State and timeline of one experiment."""

    def __init__(
        self, carried: CarriedSweep, rows: Callable[[], Sequence[tuple[str, str]]]
    ) -> None:
        self._rows = rows
        self._shown_at = carried.started_at
        self.started_at = carried.started_at
        """When the first run began."""
        self.timeline = list(carried.timeline)
        """What happened, oldest first."""
        self.state = self.timeline[-1].state if self.timeline else ExperimentState.PREPARING
        """Where it is."""
        self.message = self.timeline[-1].message if self.timeline else ""
        """Why."""
        self.finished_at: datetime | None = None
        """When it ended."""

    def enter(self, state: ExperimentState, message: str) -> None:
        """Go to a state."""
        changed = state != self.state or not self.timeline
        self.state = state
        if state.is_final:
            self.finished_at = workflow.now()
        self.note(message)
        if changed:
            workflow.upsert_search_attributes([STATE.value_set(state.value)])

    def note(self, message: str) -> None:
        """Something happened."""
        self.message = message
        self.timeline.append(
            ExperimentEvent(
                sequence=len(self.timeline) + 1,
                at=workflow.now(),
                state=self.state,
                message=message,
            )
        )
        self.show()

    def show_now_and_then(self) -> None:
        """Show it, unless that was done a moment ago."""
        if workflow.now() - self._shown_at >= SHOW_INTERVAL:
            self.show()

    def show(self) -> None:
        """Set what Temporal's UI shows."""
        self._shown_at = workflow.now()
        rows = [("state", f"**{self.state}**: {self.message}"), *self._rows()]
        body = "\n".join(f"| {name} | {value} |" for name, value in rows)
        workflow.set_current_details(f"| | |\n|---|---|\n{body}")
