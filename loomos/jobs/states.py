"""States of jobs and nodes, as people and machines read them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    """Accepted; waits for a worker or for nodes."""
    STARTING = "starting"
    """Has nodes; ranks are starting."""
    RUNNING = "running"
    """Ranks take steps."""
    RECOVERING = "recovering"
    """An attempt failed; the next one waits for nodes."""
    PAUSED = "paused"
    """Checkpointed, holds no nodes, waits for resume."""
    PUBLISHING = "publishing"
    """Writes the model version."""
    VERIFYING = "verifying"
    """Prism asks the published version."""
    ROLLING_OUT = "rolling_out"
    """The published version is on trial at an endpoint."""
    COMPLETED = "completed"
    """Done; a model version exists, if the algorithm makes one."""
    FAILED = "failed"
    """Ended by an error that a new attempt would not mend."""
    CANCELLED = "cancelled"
    """Ended by a person."""

    @property
    def is_final(self) -> bool:
        """Whether the job will not change any more."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


class NodeState(StrEnum):
    """What a node may be used for."""

    READY = "ready"
    """Takes new leases."""
    CORDONED = "cordoned"
    """Keeps what it has, takes nothing new."""
    DRAINING = "draining"
    """Its runs are moved away; then it is cordoned."""
    LOST = "lost"
    """Its heartbeats stopped."""
