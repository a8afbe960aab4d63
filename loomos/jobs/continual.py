"""What a person writes of continual learning, and the messages that carry it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field

from loomos.jobs.message import Message
from loomos.jobs.training import JobResult
from loomos.limits import WRITABLE, Span, Steps, Timeout, Where
from loomos.manifest import (
    Document,
    FineTuning,
    LocalPath,
    LoRA,
    Metadata,
    Name,
    Resources,
    RolloutPlan,
    Verification,
    WholeDocument,
)
from loomos.quantities import Duration


class Collect(Document):
    """Which new data an update learns from."""

    captures: bool = True
    """What the endpoint captured; it must have `capture: true`."""
    unrated: bool = False
    """Also answers that nobody rated. Those with a thumb down are never learnt, unless a person
    said what would have been right."""
    files: Annotated[list[Annotated[Where, LocalPath("growing")]], Field(max_length=100)] = []
    """JSONL files that grow at their end, below the control worker's `data.roots`."""
    min_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Fewer new samples are left for the next period."""
    max_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Most new samples of one update; the rest is left for the next."""


class Replay(Document):
    """Old data that is mixed in, against forgetting."""

    file: Annotated[Where, LocalPath("file")]
    """A JSONL file: a path beside the document, which the CLI and the SDK upload,
    `upload:SHA256`, or a path below the control worker's `data.roots`."""
    ratio: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Old samples for each new one."""


class Budget(Document):
    """What updates may cost."""

    period: Span = timedelta(days=30)
    """Over which it is counted."""
    updates: Steps | None = None
    """Most updates in a period."""
    training_time: Span | None = None
    """Most time that trainings may take in a period."""


MICRO_UPDATE = FineTuning(
    method="lora",
    lora=LoRA(r=8, alpha=16),
    learning_rate=1e-4,
    num_epochs=1,
    batch_size=8,
    weight_decay=0.1,
)


class ContinualSpec(Document):
    """What a `ContinualLearning` does."""

    cron: Annotated[str, Field(min_length=9, max_length=200), WRITABLE]
    """When, as five fields of crontab."""
    time_zone: Annotated[str, Field(max_length=64), WRITABLE] = "UTC"
    """Of the cron expression, such as Europe/Berlin."""
    catch_up: Timeout = timedelta(hours=1)
    """How late a period that was missed is still made up for."""
    endpoint: Name
    """The endpoint whose stable version is updated."""
    collect: Collect = Collect()
    """New data."""
    replay: Replay | None = None
    """Old data."""
    update: FineTuning = MICRO_UPDATE
    """The optimisation; `weight_decay` pulls an adapter towards the stable version, which is where
    its weights are zero."""
    resources: Resources = Resources()
    """What an update needs."""
    priority: Annotated[int, Field(ge=1, le=5)] = 3
    """Of its trainings: 1 is served first, 5 last."""
    verify: Verification = Verification()
    """What Prism asks; it compares with the stable version."""
    rollout: RolloutPlan | None = None
    """How the update is put on trial. Default: the default stages at the endpoint."""
    budget: Budget = Budget()
    """What updates may cost."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 5
    """Updates whose versions are kept; older ones that nobody serves are deleted."""

    def faults(self) -> Iterator[str]:
        """An update is an adapter; it has data to learn from, and is tried where it will serve."""
        if len(self.cron.split()) != 5:
            yield "cron: write five fields, as in '0 3 * * *' for every night at three"
        if self.update.method == "full":
            yield "update.method: lora or qlora; an update is an adapter"
        if self.rollout is not None and self.rollout.endpoint != self.endpoint:
            yield "rollout.endpoint must be the endpoint that is updated"
        if not self.collect.captures and not self.collect.files:
            yield "collect: nothing is collected; name files, or set captures: true"


class ContinualJob(WholeDocument):
    """The document: `kind: ContinualLearning`."""

    apiVersion: Literal["loomos.ai/v1"]
    """Version of this schema."""
    kind: Literal["ContinualLearning"]
    """What the document describes."""
    metadata: Metadata
    """Who and what it is; the schedule has its name."""
    spec: ContinualSpec
    """What it does."""


class ContinualInput(Message):
    """Input of the `ContinualLearning` workflow: one period."""

    name: str
    """Name of the schedule."""
    owner: str
    """Who made it."""
    project: str = "default"
    """Whose share its trainings use."""
    spec: ContinualSpec
    """What to do."""


class CollectRequest(Message):
    """Collect what is new."""

    update_id: str
    """The period's workflow and run."""
    name: str
    """Name of the schedule."""
    spec: ContinualSpec
    """What is collected."""


class Collected(Message):
    """What an update would learn from, or why there is none."""

    reason: str = ""
    """Why nothing is done; empty if there is something to learn."""
    samples: int = 0
    """New samples."""
    replayed: int = 0
    """Old samples mixed in."""
    dataset: str = ""
    """Where they are."""
    model: str = ""
    """Name of the model."""
    base: str = ""
    """`NAME@VERSION` that is updated."""


class Conclude(Message):
    """Write down what came of a period."""

    update_id: str
    """The period."""
    name: str
    """Name of the schedule."""
    collected: Collected
    """What was there to learn."""
    decision: Literal["promoted", "discarded", "skipped", "failed"]
    """What came of it."""
    reason: str
    """For people."""
    result: JobResult | None = None
    """Of the training."""
    took: Duration = timedelta(0)
    """Time from the training's start to its end."""
    keep: int
    """Updates whose versions are kept."""


class UpdateRecord(Message):
    """A period, as it is remembered."""

    update_id: str
    """The period."""
    at: datetime
    """When it was over."""
    decision: Literal["promoted", "discarded", "skipped", "failed"]
    """What came of it."""
    reason: str
    """Why."""
    samples: int = 0
    """New samples."""
    base: str = ""
    """What was updated."""
    version: str = ""
    """What was made."""
    training_s: float = 0.0
    """Time of the training."""


class ContinualState(Message):
    """What a schedule remembers between its periods."""

    cursors: dict[str, str] = {}
    """Watermark of captures: what was collected, by server."""
    offsets: dict[str, int] = {}
    """Watermark of files: bytes that were collected."""
    taken: dict[str, int] = {}
    """Records of the chunk after a server's watermark that were collected already."""
    pending: dict[str, PendingMarks] = {}
    """Watermarks that count once a period is over, by period."""
    updates: list[UpdateRecord] = []
    """Newest periods, oldest first."""


class PendingMarks(Message):
    """Where the watermarks go when a period is over."""

    cursors: dict[str, str] = {}
    """Of captures."""
    offsets: dict[str, int] = {}
    """Of files."""
    taken: dict[str, int] = {}
    """Of the chunk after a server's watermark."""


ContinualState.model_rebuild()
