"""What the gateway answers and the SDK returns: the same classes on both sides."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from loomos.jobs.cluster import NodeStatus, QueuedRequest
from loomos.jobs.states import JobState
from loomos.jobs.training import AttemptSummary, ModelVersion, Progress, TimelineEntry
from loomos.limits import Words
from loomos.manifest import Labels


class Answer(BaseModel):
    """Base of answers; a newer gateway may add fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class JobSummary(Answer):
    """A job as lists show it."""

    job_id: str
    """Id of the job and of its workflow."""
    name: str
    """Name from the manifest."""
    state: JobState
    """Where it is in its life."""
    owner: str
    """Who submitted it."""
    project: str
    """Project from the manifest."""
    labels: dict[str, str]
    """Labels."""
    priority: int
    """1 is served first."""
    model: str | None = None
    """`name@version` that it published."""
    created_at: datetime
    """When it was submitted, or restarted."""
    finished_at: datetime | None = None
    """When it ended."""


class JobPage(Answer):
    """Some jobs."""

    jobs: list[JobSummary]
    """Newest first."""
    next_cursor: str | None = None
    """Give it as `cursor` for the page that follows; null on the last page."""


class JobDetail(JobSummary):
    """A job with all that is known of it."""

    message: str
    """Why it is in its state."""
    progress: float
    """Percent of the steps done."""
    current_stage: str
    """State and message in one line."""
    training: Progress | None = None
    """How far the attempt is."""
    attempts: list[AttemptSummary] = []
    """Attempts, oldest first."""
    timeline: list[TimelineEntry] = []
    """What happened, oldest first."""
    published: ModelVersion | None = None
    """Model version, once published."""
    asked: str | None = None
    """What was asked of it and is not done yet: pause, restart, migrate or cancel."""
    queued: QueuedRequest | None = None
    """Its place in the queue and what it waits for, while it waits for nodes."""
    spec: dict[str, Any]
    """What was asked for."""
    temporal_url: str
    """The job's page in Temporal's UI."""
    partial: str = ""
    """Why this is not everything: who knows more does not answer. Empty if it is."""


class Submitted(Answer):
    """Answer to a submission."""

    job_id: str
    """Id of the job."""
    created: bool
    """False if the idempotency key had been used for the same manifest before."""
    temporal_url: str
    """The job's page in Temporal's UI."""


class Records(Answer):
    """Metrics, logs or events of a job."""

    records: list[dict[str, Any]]
    """Each with `at`, `generation` (the attempt) and `node`."""
    next_cursor: str | None = None
    """Give it as `after` for what comes later."""


class Artifact(Answer):
    """A file of a published model."""

    path: str
    """Name below the model's root."""
    size_bytes: int
    """Size."""
    sha256: str
    """Digest."""


class ArtifactList(Answer):
    """Files that a job made."""

    artifacts: list[Artifact]
    """Every file."""


class ClusterResources(Answer):
    """What the ready nodes have, and what of it is in use."""

    nodes_ready: int
    """Nodes that take work."""
    nodes_total: int
    """Nodes known."""
    ranks_used: int
    """Ranks leased."""
    ranks_total: int
    """Ranks of ready nodes."""
    gpus_used: int
    """GPUs on leased nodes."""
    gpus_total: int
    """GPUs of ready nodes."""
    cpu_total: int
    """Cores of ready nodes."""
    memory_bytes_total: int
    """Memory of ready nodes."""
    jobs_waiting: int
    """Requests in the queue."""


class NodeLoad(Answer):
    """What a node last said of its load."""

    cpu_percent: float | None = None
    """Use of all cores."""
    memory_percent: float | None = None
    """Use of main memory."""
    memory_available_bytes: int | None = None
    """Memory left."""
    storage_free_bytes: int | None = None
    """Scratch disk left."""


class WorkerDetail(NodeStatus):
    """A node with its load."""

    load: NodeLoad | None = None
    """Newest load."""
    last_heartbeat_at: datetime | None = None
    """When it last spoke."""


class WorkerList(Answer):
    """Nodes of the cluster."""

    workers: list[NodeStatus]
    """By name."""


class JobChange(BaseModel):
    """Body of `PUT /jobs/{id}`."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    priority: int | None = Field(default=None, ge=1, le=5)
    """New priority."""
    labels: Labels | None = None
    """New labels, replacing the old."""


class Migration(BaseModel):
    """Body of `POST /jobs/{id}/migrate`."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    nodes: list[Words] = Field(min_length=1, max_length=1000)
    """Nodes to move to."""


class RestartOptions(BaseModel):
    """Body of `POST /jobs/{id}/restart`."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    from_scratch: bool = False
    """Ignore its checkpoints; only for a job that has ended."""


class Health(Answer):
    """Whether the gateway, or what it stands on, works."""

    status: Literal["ok", "unavailable"]
    """Overall."""
    parts: dict[str, str] = {}
    """By part."""


class ProblemError(Answer):
    """One thing wrong in a request."""

    path: str
    """Where."""
    message: str
    """What, and what would be right."""


class Problem(Answer):
    """An error, as RFC 9457 writes it."""

    type: str = "about:blank"
    """Kind of problem."""
    title: str
    """The same for each problem of this kind."""
    status: int
    """HTTP status."""
    detail: str
    """What happened this time, and the next step."""
    errors: list[ProblemError] = []
    """Each field that is wrong."""
