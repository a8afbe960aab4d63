"""What workflows let the ledger know. A fact has a key: a retry records nothing twice."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from loomos.jobs.message import Message
from loomos.jobs.training import ModelVersion, TrainingRunInput


class Fact(Message):
    """Something that happened to a job."""

    event_type: str
    """What; a `loomos.loomdb.EventType`."""
    key: str
    """Unique within the job; the event's id is made of it."""
    data: dict[str, Any] = Field(default_factory=dict)
    """What is known of it. Nothing personal."""
    person: str | None = None
    """Who did it, if a person did."""


def submitted_facts(job: TrainingRunInput) -> dict[str, Any]:
    """What the ledger is told of a job that was asked for."""
    return {
        "job_id": job.job_id,
        "labels": job.labels,
        "name": job.name,
        "project": job.project,
        "spec": job.spec.model_dump(mode="json"),
    }


class RecordFacts(Message):
    """Facts of one job for the ledger."""

    job_id: str
    """Whose."""
    facts: list[Fact]
    """In their order."""
    stream: str = ""
    """Stream of the ledger. Default: the job's."""


class RecordCheckpoints(Message):
    """Let the ledger know of the job's checkpoints that it does not know yet."""

    job_id: str
    """Whose."""


class SignVersion(Message):
    """Sign a version that a node has uploaded as a draft, so that it exists."""

    version: str
    """`NAME@VERSION`."""


class AttestModel(Message):
    """Sign and record what a job published."""

    job_id: str
    """Whose."""
    model: ModelVersion
    """What."""
