"""Messages about models in service: routes, endpoints, servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from loomos.jobs.message import Message
from loomos.limits import MOST_BYTES, WRITABLE, Positive, Reference, Word, Words
from loomos.manifest import Document, Name

WHOLE = 10_000
"""All traffic, in basis points."""


class Replicas(Document):
    """How many servers hold an endpoint's models."""

    min: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest; 0 stops serving without forgetting the endpoint."""
    max: Annotated[int, Field(ge=1, le=1000)] = 1
    """Most."""
    queue_per_replica: Positive = 8.0
    """Requests, running and waiting, for each replica above which one more is added."""

    def faults(self) -> Iterator[str]:
        """`min` is not above `max`."""
        if self.min > self.max:
            yield f"min ({self.min}) is above max ({self.max}); swap them"


class RemoteTarget(Document):
    """A server elsewhere that speaks OpenAI's protocol, such as vLLM."""

    base_url: Annotated[str, Field(max_length=1024, pattern=r"^https?://.+"), WRITABLE]
    """Its URL, up to and with `/v1`."""
    model: Words
    """The name it knows the model by."""
    api_key_env: Words | None = None
    """Name of a key in the operator's settings (`serving.remotes`), which say to which URLs it may
    be sent. Default: none is sent."""


class EndpointSpec(Document):
    """What a person wants of an endpoint."""

    model: Reference
    """The model to serve: `NAME`, `NAME@ALIAS` or `NAME@VERSION`."""
    replicas: Replicas = Replicas()
    """How many servers hold it."""
    max_queue: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Requests that may wait on one server; more get 429."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Most tokens that one request may ask for."""
    detectors: Annotated[list[Word], Field(max_length=32)] = ["toxicity"]
    """Detectors that look at every answer; a hit is an outcome, nothing is withheld."""
    capture: bool = False
    """Keep prompts and answers, to learn from."""
    remote: RemoteTarget | None = None
    """Let a server elsewhere answer in place of ours."""


class Target(Message):
    """What one arm serves."""

    version: str
    """`NAME@VERSION`, pinned."""
    remote: RemoteTarget | None = None
    """Set if a server elsewhere has it."""


class Route(Message):
    """The route row of an endpoint: all that a server needs to know, in one revision.

    Servers keep the newest they saw. Without a canary it holds until the next. With one it holds
    until `expires_at`; then all traffic is stable's.
    """

    endpoint: str
    """Whose."""
    generation: int
    """Number of the revision; the fencing token."""
    spec: EndpointSpec
    """Limits and detectors."""
    stable: Target
    """The control arm."""
    canary: Target | None = None
    """The arm on trial."""
    canary_bp: Annotated[int, Field(ge=0, le=WHOLE)] = 0
    """The canary's share of traffic, in basis points."""
    shadow_bp: Annotated[int, Field(ge=0, le=WHOLE)] = 0
    """Share of requests that the canary answers too, unseen, in basis points."""
    replicas: list[str] = []
    """Servers that hold the models."""
    salt: str = ""
    """Mixed into the hash of the sticky key."""
    stage: str = ""
    """Stage of the rollout; outcomes carry it."""
    holder: str = ""
    """`WORKFLOW/RUN` that alone may change the canary; empty without one."""
    issued_by: str = ""
    """Who wrote this revision."""
    issued_at: datetime
    """When."""
    expires_at: datetime | None = None
    """End of the canary's lease."""
    is_closed: bool = False
    """The endpoint is gone."""


class ServerStatus(Message):
    """What a serving process says of itself, once a second."""

    server_id: str
    """Its name."""
    incarnation: str
    """Differs each time it starts."""
    url: str
    """Where it answers."""
    at: datetime
    """When it said so."""
    is_draining: bool = False
    """Takes no more requests."""
    loaded: list[str] = []
    """Versions that it can answer with."""
    failed: dict[str, str] = {}
    """Versions that it could not load, and why."""
    goldens: dict[str, str] = {}
    """Digest of what each loaded version says to the golden prompt; the same on every server."""
    generations: dict[str, int] = {}
    """Route row that it obeys, by endpoint."""
    waiting: dict[str, int] = {}
    """Requests that run or wait, by endpoint."""


class EndpointInput(Message):
    """Input of the `Endpoint` workflow; also what it hands to its next run."""

    name: Name
    """Name of the endpoint."""
    owner: str
    """Who made it."""
    spec: EndpointSpec
    """What is wanted."""


class OpenEndpoint(Message):
    """Write the first route row, or a changed one."""

    name: str
    """Which endpoint."""
    spec: EndpointSpec
    """What is wanted."""
    issued_by: str
    """Workflow and run."""
    owner: str
    """Who asked."""
    request: str
    """Unique for this change, so that a retry changes nothing twice."""


class WatchEndpoint(Message):
    """Watch an endpoint's servers."""

    name: str
    """Which endpoint."""
    issued_by: str
    """Workflow and run."""


class Placement(Message):
    """Which servers hold an endpoint's models from now on."""

    replicas: list[str]
    """Servers, by name."""
    reason: str
    """For people."""


class PlaceReplicas(Message):
    """Write who holds an endpoint's models."""

    name: str
    """Which endpoint."""
    issued_by: str
    """Workflow."""
    replicas: list[str]
    """Servers, by name."""


class CloseEndpoint(Message):
    """Delete an endpoint."""

    name: str
    """Which endpoint."""
    issued_by: str
    """Workflow."""


class EndpointStatus(Message):
    """Answer of the `status` query."""

    name: str
    """Which endpoint."""
    state: Literal["opening", "serving", "closing", "closed"]
    """Where it is."""
    message: str = ""
    """Why, for people."""
    spec: EndpointSpec | None = None
    """What is wanted; none where what it was started with cannot be read."""
    route: Route | None = None
    """The newest route row that the workflow knows of."""
    partial: str = ""
    """Why this is not everything: the workflow itself does not answer. Empty if it does."""


class ModelChange(Message):
    """Input of the `ModelChange` workflow: one change to the registry."""

    action: Literal["register", "alias", "unalias", "delete"]
    """What to do."""
    name: str
    """Model."""
    version: str = ""
    """Version, for all but `register`; for `unalias` the one that the alias is at."""
    alias: str = ""
    """Which alias, for `alias` and `unalias`."""
    expected: str | None = None
    """Version that the alias must be at; null to move it wherever it is."""
    files: dict[str, FileFacts] = {}
    """For `register`, the files, which are blobs in the store."""
    person: str
    """Who asked."""


class FileFacts(Message):
    """A file of a version."""

    sha256: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]
    """Its digest."""
    size_bytes: Annotated[int, Field(ge=0, le=MOST_BYTES)]
    """Its size."""


ModelChange.model_rebuild()
