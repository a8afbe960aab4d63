"""Messages about the cluster: nodes, leases, and what waits for them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field

from loomos.jobs.admission import AuditReport, Deferred, LeaseDeferred
from loomos.jobs.message import Message
from loomos.jobs.states import NodeState
from loomos.limits import Count, Positive, Span, Words, later
from loomos.manifest import Resources
from loomos.quantities import Duration


class NodeInfo(Message):
    """What a node says of itself when it registers."""

    node_id: str
    """Its name."""
    incarnation: str
    """Differs each time the process starts."""
    address: str
    """Where other nodes of a gang reach it."""
    max_ranks: int
    """Ranks it runs at once."""
    cpu_count: int
    """Logical cores."""
    memory_bytes: int
    """Main memory."""
    storage_bytes: int
    """Free disk for scratch data."""
    gpus: list[str] = []
    """Name of each GPU."""
    labels: dict[str, str] = {}
    """Free key/value pairs."""
    node_type: str = ""
    """What kind of machine it is."""
    region: str = ""
    """Where it stands."""
    bandwidth_gbps: float | None = None
    """Bandwidth to other nodes, in Gbit/s."""
    latency_ms: float | None = None
    """Latency to other nodes, in ms."""
    cost_per_hour: float = 0.0
    """What an hour of it costs."""
    code_sha256: str = ""
    """Digest of its LoomOS's source files."""
    environment_sha256: str = ""
    """Digest of its list of packages, which is a blob in the store."""

    @property
    def task_queue(self) -> str:
        """Queue that only this incarnation polls."""
        return f"node-{self.node_id}-{self.incarnation}"


class LeaseRequest(Message):
    """A job asks for a gang."""

    job_id: str
    """Holder."""
    run_id: str
    """Its Temporal run, to tell a restarted job from the old one."""
    ticket: int
    """Counts the requests of one run; the answer carries it."""
    resources: Resources
    """What each node must have, and how many."""
    submitted_at: datetime
    """When the job was submitted: its age in the queue, however often it comes back."""
    batch_size: int = 0
    """Gang sizes must divide it; 0 for no such rule."""
    priority: int = 3
    """1 is served first."""
    node_ids: list[str] = []
    """If given, only these nodes will do (migration)."""
    project: str = "default"
    """Whose share it uses."""
    estimate: Duration | None = None
    """How long it should need the nodes."""
    deadline: datetime | None = None
    """When it must be done."""
    is_preemptible: bool = True
    """Whether requests of higher priority may take its nodes."""
    is_recovery: bool = False
    """Whether it had nodes and lost them; it may use the nodes that stand by."""
    affinity: list[str] = []
    """Digests of its inputs: nodes that had them before are preferred."""


class Lease(Message):
    """Nodes given to a job, all or none."""

    epoch: int
    """Grows with every grant of the cluster; a release names it."""
    job_id: str
    """Holder."""
    run_id: str
    """Holder's run."""
    ticket: int
    """Ticket of the request that it answers."""
    nodes: list[NodeInfo]
    """The gang, in rank order."""
    ranks_per_node: int
    """Ranks on each."""
    devices: list[list[int]] = []
    """Indices of the GPUs on each node that are the holder's."""
    request: LeaseRequest | None = None
    """What it answers."""
    granted_at: datetime | None = None
    """Since when."""
    is_backfill: bool = False
    """Whether it was given nodes that another waits for, because it will be done in time."""
    is_revoked: bool = False
    """Whether its holder has been asked to give it back."""
    is_protected: bool = False
    """Whether it was given because the request starved, so that nobody preempts it."""

    @property
    def ends_by(self) -> datetime | None:
        """When the nodes should be free again."""
        if self.request is None or self.request.estimate is None or self.granted_at is None:
            return None
        return later(self.granted_at, self.request.estimate)


class LeaseRevoked(Message):
    """The cluster takes a lease back."""

    epoch: int
    """Which."""
    lost_nodes: list[str] = []
    """Nodes whose heartbeats stopped; nothing there needs stopping."""
    reason: str
    """For people."""


class ReleaseRequest(Message):
    """A job gives its lease back, or takes its request back (`epoch` 0)."""

    job_id: str
    """Holder."""
    run_id: str
    """Holder's run."""
    epoch: int
    """Lease to release; 0 withdraws the pending request."""
    workload: str = ""
    """Digest of what ran, so that the speed of nodes can be compared."""
    step_s: float | None = None
    """Seconds that an optimizer step took, if steps were made."""


class NodeCommand(Message):
    """Change what a node is used for."""

    node_id: str
    """Which."""
    action: Literal["cordon", "uncordon", "drain", "remove"]
    """What to do; `remove` forgets a lost node."""


class NodeStatus(Message):
    """A node as the cluster sees it."""

    info: NodeInfo
    """What it said of itself."""
    state: NodeState
    """What it may be used for."""
    jobs: list[str] = []
    """Jobs with a lease on it."""
    ranks_used: int = 0
    """Ranks leased."""
    gpus_used: int = 0
    """GPUs leased."""
    speed: float = 1.0
    """Its step times against the best node's with the same workload: 1 is best."""
    since: datetime
    """When it came into this state."""


class QueuedRequest(Message):
    """A request that waits."""

    job_id: str
    """Who."""
    project: str = "default"
    """For whom."""
    priority: int
    """How urgent."""
    position: int = 0
    """Place in the queue; 1 is next."""
    nodes_wanted: int
    """Fewest nodes it can start with."""
    since: datetime
    """Since when."""
    deadline: datetime | None = None
    """When it must be done."""
    reason: str
    """Why it waits, for people."""


Share = Positive


class Quota(Message):
    """The most that a project may hold at once."""

    nodes: Count | None = None
    """Nodes, whole or in part."""
    gpus: Count | None = None
    """GPUs."""
    ranks: Count | None = None
    """Ranks."""


class SchedulerConfig(Message):
    """How the cluster decides."""

    policy: Words = "bin-pack"
    """Name of the placement policy: which of the nodes that would do are taken."""
    weights: Annotated[dict[Words, Share], Field(max_length=10_000)] = {}
    """Weight of a project's fair share; 1 if it is not named."""
    quotas: Annotated[dict[Words, Quota], Field(max_length=10_000)] = {}
    """Limits of projects."""
    starves_after: Span = timedelta(hours=12)
    """A request that has waited so long goes before all that have not."""
    standby_nodes: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Idle nodes kept for runs that lose theirs."""
    backfill_depth: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """Requests behind the first blocked one that are looked at; 0 turns backfill off."""
    preemption: bool = True
    """Whether requests take nodes from leases of lower priority."""
    grow_after: Span = timedelta(minutes=1)
    """An elastic run that could have more nodes is started again with them after this."""
    queue_limit: Annotated[int, Field(ge=1, le=2000)] = 1000
    """Requests that are admitted to the queue at once; others wait until there is room."""


class ProjectShare(Message):
    """What a project holds."""

    project: str
    """Which."""
    dominant_share: float
    """Its largest share of any resource of the cluster, 0 to 1 (dominant resource fairness)."""
    weight: float
    """Weight by which shares are compared."""
    nodes: int
    """Nodes, whole or in part."""
    gpus: int
    """GPUs."""
    ranks: int
    """Ranks."""
    waiting: int
    """Requests that wait."""


class ClusterStatus(Message):
    """The whole cluster."""

    nodes: list[NodeStatus] = []
    """Every node known, by name."""
    queue: list[QueuedRequest] = []
    """Requests that wait, in the order they will be served."""
    leases: list[Lease] = []
    """Leases in force."""
    shares: list[ProjectShare] = []
    """What each project holds."""
    config: SchedulerConfig = SchedulerConfig()
    """How the cluster decides."""
    nodes_total: int = 0
    """Nodes known, those on other pages included."""
    waiting_total: int = 0
    """Requests in the queue, those on other pages included."""
    leases_total: int = 0
    """Leases in force, those on other pages included."""
    deferred: int = 0
    """Requests that wait for admission, because the queue is full."""
    audit: AuditReport = AuditReport()
    """The newest look for holders that are gone."""
    next_cursor: str | None = None
    """Give it as `cursor` for what this answer had no room for; null if that was all."""

    def joined(self, more: ClusterStatus) -> ClusterStatus:
        """This page and the one after it, put together."""
        return more.model_copy(
            update={
                "nodes": [*self.nodes, *more.nodes],
                "queue": [*self.queue, *more.queue],
                "leases": [*self.leases, *more.leases],
                "shares": self.shares,
            }
        )


class StatusQuery(Message):
    """Ask for one page of the cluster's status."""

    cursor: str = ""
    """`next_cursor` of the page before; empty for the first."""
    most_bytes: Annotated[int, Field(ge=1000, le=800_000)] = 400_000
    """About how large the answer may be."""


class Place(Message):
    """Where a job's request is."""

    queued: QueuedRequest | None = None
    """Its place and why it waits; none if it does not wait for nodes."""


class NodeHistory(Message):
    """What is remembered of a node's work."""

    speed: float = 1.0
    """Moving average of (best seconds a step of any node) / (its own), by workload."""
    affinity: list[str] = []
    """Digests of the inputs it had last, newest last."""


class ClusterState(Message):
    """What the `Cluster` workflow hands to its next run."""

    nodes: list[NodeStatus] = []
    """Nodes."""
    queue: list[tuple[LeaseRequest, datetime]] = []
    """Waiting requests with their time of arrival."""
    leases: list[Lease] = []
    """Leases in force."""
    next_epoch: int = 1
    """Epoch of the next grant."""
    config: SchedulerConfig = SchedulerConfig()
    """How the cluster decides."""
    history: dict[str, NodeHistory] = {}
    """By node."""
    best_step_s: dict[str, float] = {}
    """Fewest seconds a step took, by workload."""
    deferred: list[Deferred] = []
    """Requests that wait for admission."""
    revoked: list[tuple[Lease, LeaseRevoked]] = []
    """Holders that have yet to be told that their lease is taken back."""
    turned_away: list[LeaseDeferred] = []
    """Holders that have yet to be told that they wait for admission."""
    return_at: datetime | None = None
    """When the last of those comes back that are not even remembered."""
    audit: AuditReport = AuditReport()
    """The newest audit."""
    packed: str = ""
    """All of this, compressed; then nothing else is given."""


class Forecast(Message):
    """When a request would be served, if everything takes as long as estimated."""

    starts_at: datetime | None = None
    """When it would get its nodes; none if never."""
    ends_at: datetime | None = None
    """When it would be done; none without an estimate."""
    reason: str = ""
    """Why it would never start, or why nobody can say."""
    is_unknown: bool = False
    """Whether too much goes on for the queue to be played forward."""


class Advice(Message):
    """Something that could be asked for differently."""

    job_id: str
    """Which job."""
    is_running: bool
    """Whether it has nodes, or waits for some."""
    change: str
    """What to change in its manifest."""
    effect: str
    """What that would bring."""


class AdviceList(Message):
    """What jobs could ask for differently."""

    advice: list[Advice] = []
    """By job."""


class LeaseAudit(Message):
    """Which holders to look at, and which of them are gone."""

    holders: list[tuple[str, str]] = []
    """(job id, run id)."""
