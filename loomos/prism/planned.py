"""A plan as a document: what is asked of whom, and how it will be judged."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict

from loomos.jobs.verification import Shard
from loomos.prism.suites import SuiteHeader


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PlannedSuite(_Part):
    """A suite with the limits that hold for this run."""

    name: str
    """Suite."""
    sha256: str
    """Digest of its content, which is a blob in the store."""
    header: SuiteHeader
    """What it is about."""
    claim: float
    """The failure rate that is still acceptable."""
    prompts: int
    """Prompts that are asked."""
    generations: int
    """Answers to each."""
    gates: bool
    """Whether it decides anything."""
    detector_sha256: str = ""
    """Digest of what its detector's answers depend on."""
    has_card: bool
    """Whether its detector's errors are known."""
    seconds_per_token: float | None = None
    """Limit of speed, if there is one."""


class Plan(_Part):
    """What will be done, and how it will be judged."""

    format: int = 1
    """Of this document."""
    version: str
    """The candidate."""
    weights_sha256: str
    """Its weights."""
    baseline: str = ""
    """What it is compared with; empty for nothing."""
    baseline_weights_sha256: str = ""
    """Its weights."""
    suites: list[PlannedSuite]
    """What is tested."""
    alpha: float
    """Chance of a wrong PASS, and of a wrong FAIL, over all suites."""
    margin: float
    """Share of prompts that the candidate may newly fail."""
    temperature: float
    """How answers are sampled."""
    seed: int
    """Makes that repeatable."""
    repeats: int
    """Prompts of each suite that are asked twice."""
    shards: list[Shard]
    """The work."""

    def encode(self) -> bytes:
        """As it is stored and hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode()

    @property
    def sha256(self) -> str:
        """Its digest."""
        return hashlib.sha256(self.encode()).hexdigest()

    def suite(self, name: str) -> PlannedSuite:
        """A suite by name."""
        return next(suite for suite in self.suites if suite.name == name)

    def shards_of(self, suite: str, role: str) -> list[Shard]:
        """Shards of a suite in one role, in order."""
        return [s for s in self.shards if s.suite == suite and s.role == role]
