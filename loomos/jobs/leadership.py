"""Messages about who leads."""

from __future__ import annotations

from datetime import datetime, timedelta

from loomos.jobs.message import Message


class Candidate(Message):
    """A process that would lead."""

    node_id: str
    """Its name."""
    incarnation: str
    """Differs each time it starts."""

    @property
    def task_queue(self) -> str:
        """Queue that only this incarnation polls."""
        return f"leader-{self.node_id}-{self.incarnation}"


class Tenure(Message):
    """One node's time as leader; sent to it as its order to lead."""

    group: str
    """Which group it leads."""
    term: int
    """Grows with every leader: the fencing token of all that it writes."""
    node_id: str
    """Who."""
    timeout: timedelta
    """After so long without a heartbeat somebody else leads."""


class ElectionInput(Message):
    """Input of the `Leadership` workflow; also what it hands to its next run."""

    group: str
    """Which group."""
    members: list[str]
    """Nodes that may stand."""
    timeout: timedelta
    """Silence after which a leader is deposed."""
    candidates: list[Candidate] = []
    """Who stands, next first."""
    term: int = 0
    """The newest term."""


class LeadershipStatus(Message):
    """Who leads, and who else would."""

    group: str
    """Which group."""
    term: int = 0
    """The newest term; 0 if nobody ever led."""
    leader: str | None = None
    """Who leads in it, if anybody does now."""
    since: datetime | None = None
    """Since when."""
    candidates: list[Candidate] = []
    """Who stands, the leader included, next first."""
