"""Where a workflow is and what happened to it, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.message import TimelineEntryBase
    from loomos.search_attributes import STATE
    from workflows.details import show_table

KEPT_ENTRIES = 100
SHOW_INTERVAL = timedelta(seconds=1)


class State(Protocol):
    """One of an enumeration of strings."""

    @property
    def value(self) -> str:
        """As it is written."""
        ...

    @property
    def is_final(self) -> bool:
        """Whether it is the last."""
        ...


S = TypeVar("S", bound=State)
E = TypeVar("E", bound=TimelineEntryBase)


class StateLog(Generic[S, E]):
    """State and timeline of one workflow."""

    def __init__(
        self,
        entry: type[E],
        timeline: Sequence[E],
        first: S,
        started_at: datetime,
        rows: Callable[[], Sequence[tuple[str, str]]],
    ) -> None:
        """Go on from what an earlier run carried over.

        Args:
            entry: what the timeline is made of; has `state`.
            timeline: what happened so far.
            first: the state before anything did.
            started_at: when the first run began.
            rows: of the table in Temporal's UI, that the workflow itself knows.
        """
        self._entry, self._rows = entry, rows
        self._shown_at = started_at
        self.started_at = started_at
        """When the first run began."""
        self.timeline = list(timeline)
        """What happened lately, oldest first; entries are numbered from the first on."""
        newest: Any = self.timeline[-1] if self.timeline else None
        self.state: S = newest.state if newest else first
        """Where it is."""
        self.message: str = newest.message if newest else ""
        """Why."""
        self.finished_at: datetime | None = None
        """When it ended."""

    def enter(self, state: S, message: str) -> None:
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
        sequence = self.timeline[-1].sequence + 1 if self.timeline else 1
        self.timeline.append(
            self._entry.model_validate(
                {
                    "sequence": sequence,
                    "at": workflow.now(),
                    "state": self.state,
                    "message": message,
                }
            )
        )
        del self.timeline[:-KEPT_ENTRIES]
        self.show()

    def show_now_and_then(self) -> None:
        """Show it, unless that was done a moment ago."""
        if workflow.now() - self._shown_at >= SHOW_INTERVAL:
            self.show()

    def show(self) -> None:
        """Set what Temporal's UI shows."""
        self._shown_at = workflow.now()
        show_table([("state", f"**{self.state}**: {self.message}"), *self._rows()])
