"""What a person writes of a verification, and the messages that carry it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from loomos.jobs.message import Message, TimelineEntryBase
from loomos.limits import Reference
from loomos.manifest import Metadata, Verification, WholeDocument

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]


class VerificationJob(WholeDocument):
    """The document: `kind: VerificationSuite`."""

    apiVersion: Literal["loomos.ai/v1"]
    """Version of this schema."""
    kind: Literal["VerificationSuite"]
    """What the document describes."""
    metadata: Metadata
    """Who and what the verification is."""
    model: Reference
    """The version to verify: `NAME@VERSION` or `NAME@ALIAS`."""
    spec: Verification
    """What is asked of it."""


class VerificationState(StrEnum):
    """Where a verification is."""

    PLANNING = "planning"
    """Pins suites and model, hashes the plan."""
    QUEUED = "queued"
    """Waits for nodes."""
    RUNNING = "running"
    """Shards are generated."""
    JUDGING = "judging"
    """Answers are scored, reports written."""
    COMPLETED = "completed"
    """There is a verdict."""
    FAILED = "failed"
    """It could not be carried out."""
    CANCELLED = "cancelled"
    """Ended by a person."""

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self.value in ("completed", "failed", "cancelled")


class VerificationInput(Message):
    """Input of the `VerificationSuite` workflow."""

    verification_id: str
    """Workflow id."""
    owner: str
    """Who asked."""
    model: str
    """The version to verify."""
    spec: Verification
    """What is asked."""


class Shard(Message):
    """Some prompts for one version: the unit of work, and of what a crash repeats."""

    key: str
    """Digest of version, prompts, decoding and seed; the answers are filed under it."""
    suite: str
    """Suite."""
    version: str
    """`NAME@VERSION` that answers."""
    role: Literal["candidate", "baseline", "repeat"]
    """What the answers are for; `repeat` asks the candidate the same again."""
    number: int
    """Counts within suite and role."""
    first: int
    """First prompt."""
    count: int
    """Prompts."""


class PlanRef(Message):
    """A plan that is fixed: it was hashed and stored before the first generation."""

    sha256: str
    """Digest of the plan."""
    version: str
    """The candidate, pinned."""
    baseline: str = ""
    """What it is compared with, pinned; empty for nothing."""
    shards: list[Shard]
    """Work to do."""
    prompts: int
    """Prompts over all shards."""


class PlanRequest(Message):
    """Make a plan."""

    verification_id: str
    """Which verification."""
    model: str
    """The version to verify."""
    spec: Verification
    """What is asked."""


class ShardRequest(Message):
    """Generate a shard, unless that was done."""

    plan_sha256: str
    """The plan it is part of."""
    shard: Shard
    """Which."""


class ShardDone(Message):
    """A shard's answers are in the store."""

    key: str
    """Which shard."""
    was_there: bool
    """Whether they had been there before."""


class JudgeRequest(Message):
    """Score every answer, judge, and write the reports."""

    verification_id: str
    """Which verification."""
    plan_sha256: str
    """Its plan."""


class SuiteSummary(Message):
    """A suite's verdict, in short."""

    suite: str
    """Suite."""
    verdict: Verdict
    """What it is."""
    failures: int
    """Units that failed."""
    n: int
    """Units."""
    reason: str
    """For people."""


class VerificationResult(Message):
    """Result of a verification."""

    verification_id: str
    """Which."""
    version: str
    """The candidate."""
    verdict: Verdict
    """Over all suites that gate."""
    suites: list[SuiteSummary]
    """Each suite."""
    evidence_sha256: str
    """Digest of the evidence."""
    plan_sha256: str
    """Digest of the plan."""
    finished_at: datetime
    """When."""


class VerificationEvent(TimelineEntryBase):
    """Something that happened to a verification."""

    state: VerificationState
    """State after it."""


class VerificationStatus(Message):
    """Answer of the `status` query."""

    verification_id: str
    """Which."""
    state: VerificationState
    """Where it is."""
    message: str = ""
    """Why, for people."""
    version: str = ""
    """The candidate."""
    shards_done: int = 0
    """Shards whose answers are there."""
    shards: int = 0
    """Shards in all."""
    result: VerificationResult | None = None
    """The verdict."""
    timeline: list[VerificationEvent] = []
    """What happened, oldest first."""
    partial: str = ""
    """Why this is not everything: the workflow itself does not answer. Empty if it does."""
