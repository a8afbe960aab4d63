"""What a person writes of a canary rollout, and the messages that carry it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from loomos.jobs.message import Message, TimelineEntryBase
from loomos.jobs.serving import RemoteTarget, Route, Target
from loomos.limits import Reference
from loomos.manifest import Metadata, RolloutPlan, Stage, WholeDocument


class RolloutSpec(RolloutPlan):
    """What a `CanaryRollout` does."""

    model: Reference
    """The candidate: `NAME@VERSION` or `NAME@ALIAS`."""
    remote: RemoteTarget | None = None
    """Let a server elsewhere answer for the candidate."""


class CanaryRollout(WholeDocument):
    """The document: `kind: CanaryRollout`."""

    apiVersion: Literal["loomos.ai/v1"]
    """Version of this schema."""
    kind: Literal["CanaryRollout"]
    """What the document describes."""
    metadata: Metadata
    """Who and what the rollout is."""
    spec: RolloutSpec
    """What it does."""


class RolloutState(StrEnum):
    """Where a rollout is."""

    PREFLIGHT = "preflight"
    """Checks the candidate and has it loaded."""
    WATCHING = "watching"
    """A stage is on, and is judged."""
    PAUSED = "paused"
    """Keeps its share, is judged for rollback, is not promoted."""
    APPROVAL = "awaiting_approval"
    """Has the evidence, waits for a person."""
    PROMOTING = "promoting"
    """Makes the candidate stable."""
    ROLLING_BACK = "rolling_back"
    """Takes the traffic away from the candidate."""
    PROMOTED = "promoted"
    """Done: the candidate is stable."""
    ROLLED_BACK = "rolled_back"
    """Done: the old version has all traffic."""

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self in (RolloutState.PROMOTED, RolloutState.ROLLED_BACK)


class Counts(Message):
    """Units of both arms, and how many of them had an event."""

    canary_n: int = 0
    """Units of the canary."""
    canary_events: int = 0
    """Of them with the event."""
    control_n: int = 0
    """Units of the control."""
    control_events: int = 0
    """Of them with the event."""


class Evidence(Message):
    """What is known of one guardrail."""

    stage: Counts = Counts()
    """Units of the stage that is on."""
    total: Counts = Counts()
    """Units of all stages that the e-process has bet on."""
    pending: Counts = Counts()
    """Units that wait for one of the other arm, to make a block with."""
    log_bets: list[float] = []
    """What each bet of the e-process has become, as logarithms."""
    log_e: float = 0.0
    """Evidence that the canary is worse, as a logarithm."""


class StageProgress(Message):
    """How far the judging of a stage is: heartbeat detail, and what a restarted judge goes on from.

    All of it is a function of the outcomes up to the cursors.
    """

    stage: str = ""
    """Which."""
    cursors: dict[str, str] = {}
    """Outcomes that were taken in, by server."""
    first_cursors: dict[str, str] = {}
    """Where the stage's outcomes begin, by server."""
    guardrails: dict[str, Evidence] = {}
    """By guardrail."""
    canary_users: int = 0
    """Distinct sticky keys that reached the canary."""
    control_users: int = 0
    """Distinct sticky keys that reached the control."""
    slow_s: float | None = None
    """The control's frozen 95th percentile of latency."""
    latencies_s: list[float] = []
    """Latencies of the control that it is being frozen from."""
    planned_n: int | None = None
    """Canary units at which the first look for promotion is planned."""
    looks: int = 0
    """Looks for promotion that were taken."""
    began_at: datetime | None = None
    """When the stage began."""
    last_outcome_at: datetime | None = None
    """When the last outcome came."""
    note: str = ""
    """For people."""


def stage_key(holder: str, stage: str) -> str:
    """How route rows and outcomes name a stage: two rollouts never share one."""
    return f"{holder.rpartition('/')[2][:8]}/{stage}"


class OpenCanary(Message):
    """Check the candidate and write it into the route row, without traffic."""

    spec: RolloutSpec
    """What to do."""
    holder: str
    """`WORKFLOW/RUN`."""


class CanaryOpened(Message):
    """The candidate is in the row."""

    version: str
    """The candidate, pinned."""
    stable: Target
    """What it is compared with."""
    route: Route
    """The row."""
    verification: str = ""
    """Digest of the evidence that it passed."""
    cursors: dict[str, str] = {}
    """Where outcomes begin that can be of this rollout, by server."""


class SetTraffic(Message):
    """Give the canary a share."""

    endpoint: str
    """Where."""
    holder: str
    """`WORKFLOW/RUN`; another holder's canary is not touched."""
    stage: str
    """Stage that begins."""
    canary_bp: int
    """Its share in basis points."""
    shadow_bp: int = 0
    """Share of mirrored requests."""
    lease_s: float
    """How long servers obey without a renewal."""


class WatchStage(Message):
    """Judge a stage until there is a verdict."""

    spec: RolloutSpec
    """What is watched."""
    holder: str
    """`WORKFLOW/RUN`."""
    version: str
    """The candidate."""
    stage: Stage
    """The stage."""
    may_promote: bool = True
    """False to look for reasons to roll back only."""
    is_bake: bool = False
    """All traffic is the canary's: it is compared with what its control did before."""
    before: StageProgress | None = None
    """Where an interrupted judge was."""
    carried: StageProgress | None = None
    """What the stage before had found: evidence adds up, the frozen percentile stays."""


class StageVerdict(Message):
    """What a judge decided."""

    decision: Literal["promote", "rollback", "interrupted"]
    """`interrupted`: it was asked to stop."""
    reason: str
    """For people."""
    guardrail: str = ""
    """Which one decided, if one did."""
    progress: StageProgress
    """What it had seen."""
    decided_at: datetime
    """When."""


def begun(carried: StageProgress | None, stage: str, now: datetime) -> StageProgress:
    """The progress of a stage in which nothing has been seen yet.

    Args:
        carried: what the stage before had found; its evidence stays.
        stage: key of the stage.
        now: when it begins.
    """
    before = carried or StageProgress()
    return StageProgress(
        stage=stage,
        cursors=before.cursors,
        first_cursors=before.cursors,
        guardrails={
            key: evidence.model_copy(update={"stage": Counts(), "pending": Counts()})
            for key, evidence in before.guardrails.items()
        },
        slow_s=before.slow_s,
        latencies_s=before.latencies_s,
        began_at=now,
    )


class CloseCanary(Message):
    """Take the canary out of the row: promoted, or rolled back."""

    endpoint: str
    """Where."""
    holder: str
    """`WORKFLOW/RUN`."""
    version: str
    """The candidate."""
    promote: bool
    """Whether it becomes stable."""
    restore: Target | None = None
    """To undo a promotion: what was stable before."""


class CanaryClosed(Message):
    """The row after a rollout."""

    stable: str = ""
    """What serves; empty if there is no such endpoint."""
    generation: int = 0
    """Generation of the row."""
    issued_at: datetime | None = None
    """When the row was written."""


class RolloutEvent(TimelineEntryBase):
    """Something that happened to a rollout."""

    state: RolloutState
    """State after it."""
    stage: str = ""
    """Stage."""


class RolloutInput(Message):
    """Input of the `CanaryRollout` workflow."""

    name: str
    """Name from the manifest."""
    owner: str
    """Who started it."""
    spec: RolloutSpec
    """What to do."""


class RolloutStatus(Message):
    """Answer of the `status` query, and result of the workflow."""

    endpoint: str
    """Where."""
    state: RolloutState
    """Where it is."""
    stage: str = ""
    """Stage that is on."""
    message: str = ""
    """Why, for people."""
    candidate: str = ""
    """`NAME@VERSION` on trial."""
    stable: str = ""
    """What it is compared with."""
    canary_percent: float = 0.0
    """The canary's share."""
    timeline: list[RolloutEvent] = []
    """What happened, oldest first."""
    verdicts: list[StageVerdict] = []
    """What was decided, oldest first."""
    verdict_to_traffic_ms: float | None = None
    """From the judge's rollback verdict to the route row without the canary."""
    partial: str = ""
    """Why this is not everything: the workflow itself does not answer. Empty if it does."""


class Approval(Message):
    """A person approves what a stage has shown."""

    stage: str
    """Which; it must be the one that waits."""
    person: str = ""
    """Who."""


class Reason(Message):
    """Why a person steers a rollout."""

    reason: str = ""
    """For the record."""
    person: str = ""
    """Who."""
