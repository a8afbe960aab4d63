"""What the gateway says of experiments, and bodies of requests."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from loomos.client.models import Answer
from loomos.jobs.experiments import ExperimentState
from loomos.limits import WRITABLE


class ExperimentSummary(Answer):
    """An experiment as lists show it."""

    experiment_id: str
    """Its id."""
    name: str
    """From the document."""
    owner: str
    """Who started it."""
    state: ExperimentState
    """Where it is."""
    started_at: datetime
    """When its newest run began."""
    finished_at: datetime | None = None
    """When it ended."""
    trials: int | None = None
    """Finished trials, once it has ended."""
    best: list[float] = []
    """The best trial's values, once it has ended; empty for a front."""
    front: int | None = None
    """Trials on the Pareto front, once it has ended."""


class ExperimentList(Answer):
    """Experiments."""

    experiments: list[ExperimentSummary]
    """Newest first."""


class Stopping(Answer):
    """Body of `POST /experiments/{id}/stop`."""

    reason: Annotated[str, Field(max_length=500), WRITABLE] = ""
    """For the record."""
