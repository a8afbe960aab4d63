"""Messages about trainings: pinned inputs, attempts, jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field

from loomos.jobs.cluster import NodeInfo
from loomos.jobs.message import Message, TimelineEntryBase
from loomos.jobs.pruning import PruningRule, Reports
from loomos.jobs.states import JobState
from loomos.manifest import Labels, TrainingSpec
from loomos.quantities import Duration

# --- inputs, pinned -----------------------------------------------------------------------------


class DataFile(Message):
    """One file of a dataset."""

    name: str
    """Path below the dataset's root; its suffix says the format."""
    uri: str
    """Where it is: `blob:<sha256>` in the store, or `s3://bucket/key`."""
    sha256: str
    """Hex digest of the content."""
    size_bytes: int
    """Size of the content."""
    documents: int
    """Documents in it, as `loomos.training.data.document_offsets` counts."""


class DatasetIndex(Message):
    """A dataset, pinned. Kept in the store, since it grows with the number of files."""

    source: str
    """What the manifest named."""
    files: list[DataFile]
    """Its files, sorted by name."""


class Reference(Message):
    """Something in the store or outside, pinned by digest."""

    uri: str
    """Key in the store, path, hub id or `init:` type."""
    sha256: str
    """Digest of the content (of the canonical listing, for a folder)."""
    size_bytes: int = 0
    """Size of the content."""


class ResolvedInputs(Message):
    """What a run really starts from."""

    model: Reference
    """Base model; for a folder, a listing of blobs in the store."""
    tokenizer: Reference | None = None
    """Tokenizer folder, when not built in or the model's own."""
    training: Reference
    """`DatasetIndex` of the training data in the store."""
    validation: Reference | None = None
    """Likewise of separate validation data."""
    code: str
    """Version of LoomOS that resolved it."""
    base_version: str = ""
    """`NAME@VERSION` of the base model, if it is a registered one."""
    rewards: list[Reference | None] = []
    """Files of the reward functions, blobs in the store; None where a function is installed."""


# --- attempts -----------------------------------------------------------------------------------


class CheckpointRef(Message):
    """A committed checkpoint."""

    generation: int
    """Generation that wrote it."""
    step: int
    """Optimizer steps it holds."""


class OpenAttempt(Message):
    """Ask for a new generation of a job."""

    job_id: str
    """Which job."""
    claim: str
    """Unique for this attempt, so that a retried activity gets the same generation again."""
    from_scratch: bool = False
    """Accept no older checkpoint."""


class AttemptPlan(Message):
    """A new generation."""

    generation: int
    """Its number; every write of the attempt carries it."""
    accepted: list[CheckpointRef] = []
    """Older checkpoints that count, oldest first."""

    @property
    def newest(self) -> CheckpointRef | None:
        """Where the attempt will resume, if it is whole."""
        return self.accepted[-1] if self.accepted else None


class TrainAssignment(Message):
    """Work of one node in one attempt."""

    job_id: str
    """Which job."""
    generation: int
    """Which attempt."""
    lease_epoch: int
    """Under which lease."""
    node_rank: int
    """Place of this node in the gang."""
    nodes: list[NodeInfo]
    """The gang."""
    ranks_per_node: int
    """Ranks on each node."""
    spec: TrainingSpec
    """What to train."""
    inputs: ResolvedInputs
    """From what."""
    devices: list[int] = []
    """Indices of this node's GPUs that are the job's."""
    most_reports: int = 0
    """Of a trial of an experiment: so many of its first evaluations are kept for the outcome."""
    pruning: PruningRule | None = None
    """When its evaluations are too bad for it to go on."""

    @property
    def world_size(self) -> int:
        """Ranks of the gang."""
        return len(self.nodes) * self.ranks_per_node


class TrainOutcome(Message):
    """How a node's part of an attempt ended well."""

    status: Literal["completed", "stopped"]
    """`completed`: the training is done; `stopped`: asked to stop, checkpointed."""
    step: int
    """Optimizer steps done."""
    total_steps: int
    """Steps that the run will have."""
    reason: str = ""
    """`max_steps`, `early_stopping`, `pruned` or `stopped`."""
    checkpoint: CheckpointRef | None = None
    """Checkpoint that holds the result."""
    loss: float | None = None
    """Last training loss."""
    validation_loss: float | None = None
    """Last validation loss."""
    resumed_from: CheckpointRef | None = None
    """Checkpoint it started from."""
    skipped: list[CheckpointRef] = []
    """Checkpoints found corrupt or missing on the way to it."""
    evaluations: Reports = []
    """(step, validation loss) of a trial, from its first step on."""
    rungs: int = 0
    """Rungs at which it was judged."""
    episode_return: float | None = None
    """Of a policy, the mean return of the newest episodes, undiscounted."""


class Progress(Message):
    """How far an attempt is. Heartbeat detail, and now and then a signal to the workflow."""

    generation: int
    """Which attempt."""
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Steps that the run will have; 0 while unknown."""
    loss: float | None = None
    """Newest training loss."""
    validation_loss: float | None = None
    """Newest validation loss."""
    tokens_per_s: float | None = None
    """Tokens a second over all ranks."""
    environment_steps_per_s: float | None = None
    """Steps in environments a second over all ranks."""
    episode_return: float | None = None
    """Mean return of the newest episodes, undiscounted."""
    checkpoint_step: int | None = None
    """Newest committed checkpoint."""
    resumed_from: CheckpointRef | None = None
    """Where the attempt started."""
    skipped: list[CheckpointRef] = []
    """Corrupt checkpoints that were passed over."""
    doing: str = ""
    """What a rank is at that takes long, such as counting the tokens of an epoch."""


class PublishRequest(Message):
    """Turn the last checkpoint into a model version."""

    job_id: str
    """Which job."""
    name: str
    """Model name."""
    generation: int
    """Attempt that finished; its newest checkpoint is published."""
    step: int
    """Step of that checkpoint."""
    spec: TrainingSpec
    """What was trained."""
    inputs: ResolvedInputs
    """From what."""
    outcome: TrainOutcome
    """How it ended."""


class ModelVersion(Message):
    """A published model."""

    name: str
    """Model name."""
    version: str
    """Digest that identifies it."""
    key_prefix: str
    """Where its files are in the store."""
    size_bytes: int
    """Size of all files."""
    weights_sha256: str
    """Digest of the weights' files."""


# --- jobs ---------------------------------------------------------------------------------------


class TrainingRunInput(Message):
    """Input of the `TrainingRun` workflow; also what it hands to its next run."""

    job_id: str
    """Workflow id."""
    name: str
    """Name from the manifest."""
    owner: str
    """Subject of the token that submitted it."""
    project: str = "default"
    """Project from the manifest."""
    labels: Labels = {}
    """Labels from the manifest."""
    spec: TrainingSpec
    """What to do."""
    from_scratch: bool = False
    """Ignore checkpoints of earlier runs under this id."""
    most_reports: int = 0
    """Of a trial of an experiment: so many of its first evaluations are kept and judged."""
    pruning: PruningRule | None = None
    """When a trial is given up."""
    carried: CarriedState | None = None
    """State of the run that this one continues."""


class TimelineEntry(TimelineEntryBase):
    """Something that happened to a job."""

    state: JobState
    """State after it."""


class AttemptSummary(Message):
    """One attempt, for people."""

    generation: int
    """Its number."""
    nodes: list[str]
    """Where it ran."""
    started_at: datetime
    """When it got its nodes."""
    from_step: int = 0
    """Step it resumed from."""
    to_step: int | None = None
    """Last step known."""
    outcome: str = "running"
    """How it ended."""


class CarriedState(Message):
    """What a run hands to the run that continues it."""

    inputs: ResolvedInputs | None = None
    """Pinned inputs."""
    timeline: list[TimelineEntry] = []
    """Newest entries."""
    attempts: list[AttemptSummary] = []
    """Newest attempts."""
    progress: Progress | None = None
    """Newest progress."""
    failures: int = 0
    """Failures in a row without a new checkpoint."""
    best_step: int = 0
    """Newest checkpoint that counted as progress."""
    priority: int | None = None
    """Priority, if changed since the manifest."""
    submitted_at: datetime | None = None
    """When the job was submitted."""
    paused: bool = False
    """Whether it is paused."""
    ran_for: Duration = timedelta(0)
    """Time spent with nodes, for max_duration."""
    dependents: list[str] = []
    """Jobs to tell of the end."""
    migrate_to: list[str] = []
    """Nodes that the next attempt is to have, if it was asked to move."""
    last_error: str = ""
    """What broke the newest attempt and where, if the program did."""


class JobEnded(Message):
    """A job tells those that depend on it."""

    job_id: str
    """Which."""
    state: JobState
    """How it ended."""


class JobsLook(Message):
    """Ask which of these jobs have ended."""

    job_ids: list[str]
    """Which."""


class JobsEnded(Message):
    """Those that have."""

    ended: dict[str, JobState]
    """How each ended; a job that is not known counts as failed."""


class JobStatus(Message):
    """Answer of the `status` query."""

    state: JobState
    """Where it is."""
    message: str
    """Why, for people."""
    priority: int
    """1 is served first."""
    progress: Progress | None = None
    """How far it is."""
    timeline: list[TimelineEntry] = []
    """What happened, oldest first."""
    attempts: list[AttemptSummary] = []
    """Attempts, oldest first."""
    model: ModelVersion | None = None
    """What it published."""
    asked: str = ""
    """What was asked of it and is not done yet: pause, restart or migrate."""


class JobResult(Message):
    """Result of a `TrainingRun`."""

    state: JobState
    """`completed` always; failures raise."""
    step: int = 0
    """Optimizer steps done."""
    model: ModelVersion | None = None
    """What it published."""
    verdict: str = ""
    """What Prism said of that, if it was asked."""
    rollout: str = ""
    """How its trial ended, if there was one."""
    outcome: TrainOutcome | None = None
    """How the training ended, for the experiment that a trial is of."""
    episode_return: float | None = None
    """Of a policy, the mean return of its newest training episodes."""


class MigrateRequest(Message):
    """Move a running job."""

    node_ids: list[str] = Field(min_length=1)
    """Nodes to move to."""


class JobUpdate(Message):
    """Change a job while it lives."""

    priority: int | None = Field(default=None, ge=1, le=5)
    """New priority."""
    labels: Labels | None = None
    """New labels, replacing the old."""


TrainingRunInput.model_rebuild()
