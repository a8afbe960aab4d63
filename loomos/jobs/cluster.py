"""Messages about the cluster: nodes, leases, and what waits for them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from loomos.jobs.message import Message
from loomos.jobs.states import NodeState
from loomos.manifest import Resources


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
    since: datetime
    """When it came into this state."""


class QueuedRequest(Message):
    """A request that waits."""

    job_id: str
    """Who."""
    priority: int
    """How urgent."""
    nodes_wanted: int
    """Fewest nodes it can start with."""
    since: datetime
    """Since when."""
    reason: str
    """Why it waits, for people."""


class ClusterStatus(Message):
    """The whole cluster."""

    nodes: list[NodeStatus] = []
    """Every node known, by name."""
    queue: list[QueuedRequest] = []
    """Requests that wait, in the order they will be served."""
    leases: list[Lease] = []
    """Leases in force."""


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


class LeaseAudit(Message):
    """Which holders to look at, and which of them are gone."""

    holders: list[tuple[str, str]] = []
    """(job id, run id)."""
