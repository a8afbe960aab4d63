"""What the gateway answers and takes about models, endpoints and rollouts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from loomos.client.models import Answer
from loomos.jobs.continual import ContinualSpec, UpdateRecord
from loomos.jobs.rollouts import RolloutStatus
from loomos.jobs.serving import (
    EndpointSpec,
    FileFacts,
    RemoteTarget,
    Replicas,
    Route,
    ServerStatus,
)
from loomos.jobs.verification import VerificationStatus
from loomos.limits import WRITABLE, Reference, Text, Word, Words
from loomos.manifest import Name


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ModelSummary(Answer):
    """A model as lists show it."""

    name: str
    """Its name."""
    versions: int
    """Versions it has."""
    aliases: dict[str, str]
    """Version by alias."""
    partial: str = ""
    """Why this is not everything. Empty if it is."""


class ModelList(Answer):
    """Models."""

    models: list[ModelSummary]
    """By name."""


class Notes(Answer):
    """What people wrote about a version."""

    description: str = ""
    """In words."""
    tags: dict[str, str] = {}
    """Free key/value pairs."""


class Verdict(Answer):
    """What Prism last said of a version."""

    verdict: str
    """PASS, FAIL, INCONCLUSIVE or ERROR."""
    at: datetime
    """When."""
    verification_id: str
    """The run that said so."""
    evidence_sha256: str
    """Digest of its evidence."""


class ModelDetail(Answer):
    """A version of a model, and the model around it."""

    name: str
    """Model."""
    version: str
    """Version that the reference names."""
    versions: list[str]
    """All versions of the model."""
    aliases: dict[str, str]
    """Version by alias."""
    size_bytes: int
    """Size of its files."""
    weights_sha256: str
    """Digest of its weights."""
    is_signed: bool
    """Whether it carries a signature; it is verified when the version is loaded."""
    files: dict[str, FileFacts]
    """Its files."""
    lineage: dict[str, Any]
    """Where it comes from."""
    card: str = ""
    """Its model card, in Markdown."""
    notes: Notes = Notes()
    """What people wrote."""
    verification: Verdict | None = None
    """What Prism last said."""


class ModelUpload(_Body):
    """Body of `POST /models`: a version made of uploaded blobs."""

    name: Name
    """Model."""
    files: Annotated[dict[str, FileFacts], Field(min_length=1, max_length=10_000)]
    """Its files, by path below the model's folder."""


class ModelEdit(_Body):
    """Body of `PUT /models/{id}`."""

    aliases: Annotated[dict[Words, Reference | None], Field(max_length=100)] = {}
    """Aliases to point at this version: the value is the version the alias must be at now, or null
    to move it wherever it is."""
    description: Annotated[str, Field(max_length=100_000)] | None = None
    """New description."""
    tags: Annotated[dict[Words, Text], Field(max_length=100)] | None = None
    """New tags, replacing the old."""


class Deployment(_Body):
    """Body of `POST /models/{id}/deploy`."""

    endpoint: Name
    """Name of the endpoint; made if it is not there."""
    replicas: Replicas = Replicas()
    """How many servers hold it."""
    max_queue: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Requests that may wait on one server."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Most tokens that a request may ask for."""
    detectors: Annotated[list[Word], Field(max_length=32)] = ["toxicity"]
    """Detectors that look at every answer."""
    capture: bool = False
    """Keep prompts and answers, to learn from."""
    remote: RemoteTarget | None = None
    """Let a server elsewhere answer."""

    def spec(self, model: str) -> EndpointSpec:
        """What the endpoint's workflow is told."""
        return EndpointSpec(model=model, **self.model_dump(exclude={"endpoint"}))


class EndpointDetail(Answer):
    """An endpoint."""

    name: str
    """Its name."""
    state: str
    """Where it is."""
    message: str
    """Why."""
    spec: EndpointSpec | None = None
    """What is wanted; none where nobody can tell."""
    route: Route | None = None
    """Who answers what share; none before the first row was written."""
    servers: list[ServerStatus] = []
    """Servers that hold its models."""
    partial: str = ""
    """Why this is not everything. Empty if it is."""

    @property
    def is_ready(self) -> bool:
        """Whether a server can answer with the stable version."""
        route = self.route
        return route is not None and any(_is_served_by(route, server) for server in self.servers)


def _is_served_by(route: Route, server: ServerStatus) -> bool:
    known = server.generations.get(route.endpoint, 0)
    # While a canary is on trial its lease writes a row every few seconds.
    is_current = known >= route.generation or (known > 0 and route.canary is not None)
    stable = route.stable
    return is_current and (stable.remote is not None or stable.version in server.loaded)


class EndpointList(Answer):
    """Endpoints."""

    endpoints: list[EndpointDetail]
    """By name."""


class RolloutList(Answer):
    """The newest rollout of each endpoint."""

    rollouts: list[RolloutStatus]
    """By endpoint."""


class VerificationList(Answer):
    """Verifications."""

    verifications: list[VerificationStatus]
    """Newest first."""


class ScheduleDetail(Answer):
    """A schedule of continual learning."""

    name: str
    """Its name."""
    owner: str
    """Who made it."""
    spec: ContinualSpec | None = None
    """What it does; none where what it was made with cannot be read."""
    is_paused: bool
    """Whether it starts nothing."""
    is_running: bool
    """Whether a period is on."""
    next_at: datetime | None = None
    """When the next one begins."""
    updates: list[UpdateRecord] = []
    """What came of the newest periods, oldest first."""
    partial: str = ""
    """Why this is not everything. Empty if it is."""


class ScheduleList(Answer):
    """Schedules."""

    schedules: list[ScheduleDetail]
    """By name."""


class Steering(_Body):
    """Body of `POST /rollouts/{endpoint}/{verb}`."""

    reason: Annotated[str, Field(max_length=1000), WRITABLE] = ""
    """For the record."""
    stage: Annotated[str, Field(max_length=63)] = ""
    """For `approve`: the stage that waits."""


class InferenceRequest(_Body):
    """Body of `POST /models/{id}/inference`."""

    input: Annotated[dict[str, Any], Field(max_length=100)]
    """`{"text": ...}` to continue a text, or `{"messages": [...]}` to answer a conversation."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Most tokens to generate."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 takes the most likely token."""
    user: Annotated[str, Field(max_length=512)] | None = None
    """Sticky key: the same user gets the same version."""


class InferenceAnswer(Answer):
    """Answer of `POST /models/{id}/inference`."""

    id: str
    """For feedback."""
    endpoint: str
    """Who answered."""
    version: str
    """With which version."""
    output: dict[str, Any]
    """`{"text": ...}`."""
    usage: dict[str, int]
    """Token counts."""


RolloutVerb = Literal["approve", "pause", "resume", "promote", "abort"]
