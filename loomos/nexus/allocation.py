"""Who gets which nodes: gang leases, all or nothing, by priority and then age.

Pure state and rules; the `Cluster` workflow feeds it events and sends what it decides. The first
request in the queue that the registered nodes could serve blocks all behind it, so that a large
gang is not starved by small ones. A request that no set of registered nodes could serve, even if
idle, waits aside and blocks nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from loomos.errors import Conflict, NotFound
from loomos.jobs.cluster import (
    ClusterState,
    ClusterStatus,
    Lease,
    LeaseRequest,
    LeaseRevoked,
    NodeCommand,
    NodeInfo,
    NodeStatus,
    QueuedRequest,
    ReleaseRequest,
)
from loomos.jobs.states import NodeState


@dataclass
class Waiting:
    """A request in the queue."""

    request: LeaseRequest
    since: datetime


@dataclass
class Allocation:
    """Nodes, queue and leases of a cluster."""

    nodes: dict[str, NodeStatus] = field(default_factory=dict)
    queue: list[Waiting] = field(default_factory=list)
    leases: dict[int, Lease] = field(default_factory=dict)
    next_epoch: int = 1

    @classmethod
    def from_state(cls, state: ClusterState) -> Allocation:
        """Restore what `to_state` gave."""
        return cls(
            nodes={node.info.node_id: node for node in state.nodes},
            queue=[Waiting(request, since) for request, since in state.queue],
            leases={lease.epoch: lease for lease in state.leases},
            next_epoch=state.next_epoch,
        )

    def to_state(self) -> ClusterState:
        """Everything, as a message."""
        return ClusterState(
            nodes=list(self.nodes.values()),
            queue=[(waiting.request, waiting.since) for waiting in self.queue],
            leases=list(self.leases.values()),
            next_epoch=self.next_epoch,
        )

    # --- nodes ---

    def register(self, info: NodeInfo, now: datetime) -> list[tuple[Lease, LeaseRevoked]]:
        """A node says hello. A new incarnation means that the old one is gone."""
        known = self.nodes.get(info.node_id)
        revoked: list[tuple[Lease, LeaseRevoked]] = []
        if known is not None and known.info.incarnation != info.incarnation:
            revoked = self.lose(info.node_id, known.info.incarnation, now)
        state = NodeState.READY
        if known is not None and known.state in (NodeState.CORDONED, NodeState.DRAINING):
            state = known.state
        if known is None or known.info != info or known.state != state:
            self.nodes[info.node_id] = NodeStatus(info=info, state=state, since=now)
        return revoked

    def lose(
        self, node_id: str, incarnation: str, now: datetime
    ) -> list[tuple[Lease, LeaseRevoked]]:
        """A node's heartbeats stopped: its leases end."""
        node = self.nodes.get(node_id)
        if node is None or node.info.incarnation != incarnation:
            return []
        self._set_state(node_id, NodeState.LOST, now)
        return self._revoke(node_id, f"node {node_id} is lost", lost=[node_id])

    def command(self, command: NodeCommand, now: datetime) -> list[tuple[Lease, LeaseRevoked]]:
        """Cordon, uncordon, drain or remove a node.

        Raises:
            NotFound: no such node.
            Conflict: its state does not allow it.
        """
        self.check(command)
        node_id = command.node_id
        if command.action == "remove":
            del self.nodes[node_id]
        elif command.action == "cordon":
            self._set_state(node_id, NodeState.CORDONED, now)
        elif command.action == "uncordon":
            self._set_state(node_id, NodeState.READY, now)
        else:
            self._set_state(node_id, NodeState.DRAINING, now)
            revoked = self._revoke(node_id, f"node {node_id} is drained", lost=[])
            if not revoked:
                self._set_state(node_id, NodeState.CORDONED, now)
            return revoked
        return []

    def check(self, command: NodeCommand) -> None:
        """Raise what `command` would raise."""
        node = self.nodes.get(command.node_id)
        if node is None:
            known = ", ".join(sorted(self.nodes)) or "none"
            raise NotFound(f"no node {command.node_id!r}; known: {known}")
        if command.action == "remove" and node.state != NodeState.LOST:
            raise Conflict(f"node {command.node_id!r} is {node.state}; only lost nodes are removed")
        if command.action != "remove" and node.state == NodeState.LOST:
            raise Conflict(f"node {command.node_id!r} is lost; start its worker or remove it")

    def _set_state(self, node_id: str, state: NodeState, now: datetime) -> None:
        node = self.nodes[node_id]
        if node.state != state:
            self.nodes[node_id] = node.model_copy(update={"state": state, "since": now})

    def _revoke(
        self, node_id: str, reason: str, lost: list[str]
    ) -> list[tuple[Lease, LeaseRevoked]]:
        """Ask holders to let go of a node; a lease ends when it is released, or at once if lost."""
        found = [
            lease
            for lease in self.leases.values()
            if any(node.node_id == node_id for node in lease.nodes)
        ]
        if lost:
            for lease in found:
                del self.leases[lease.epoch]
        return [
            (lease, LeaseRevoked(epoch=lease.epoch, lost_nodes=lost, reason=reason))
            for lease in found
        ]

    # --- requests ---

    def request(self, request: LeaseRequest, now: datetime) -> None:
        """Queue a request; a second one of the same job replaces the first."""
        for waiting in self.queue:
            if waiting.request.job_id == request.job_id:
                waiting.request = request
                return
        self.queue.append(Waiting(request, now))

    def release(self, release: ReleaseRequest, now: datetime) -> None:
        """Give a lease back, or withdraw the job's request. Doing it twice is no error."""
        if release.epoch == 0:
            self.queue = [
                w
                for w in self.queue
                if (w.request.job_id, w.request.run_id) != (release.job_id, release.run_id)
            ]
            return
        lease = self.leases.get(release.epoch)
        if lease is not None and lease.job_id == release.job_id:
            del self.leases[release.epoch]
        for node in list(self.nodes.values()):
            if node.state == NodeState.DRAINING and not self._jobs_on(node.info.node_id):
                self._set_state(node.info.node_id, NodeState.CORDONED, now)

    def grant(self) -> list[Lease]:
        """Grant what can be granted now, in order."""
        granted: list[Lease] = []
        for waiting in self._ordered():
            request = waiting.request
            nodes = self._choose(request, only_free=True)
            if nodes is None:
                if self._choose(request, only_free=False) is None:
                    continue
                break
            lease = Lease(
                epoch=self.next_epoch,
                job_id=request.job_id,
                run_id=request.run_id,
                ticket=request.ticket,
                nodes=nodes,
                ranks_per_node=request.resources.ranks,
            )
            self.next_epoch += 1
            self.leases[lease.epoch] = lease
            self.queue.remove(waiting)
            granted.append(lease)
        return granted

    def _ordered(self) -> list[Waiting]:
        return sorted(
            self.queue, key=lambda w: (w.request.priority, w.request.submitted_at, w.request.job_id)
        )

    def _choose(self, request: LeaseRequest, *, only_free: bool) -> list[NodeInfo] | None:
        """The gang that a request would get: as large as allowed; fullest nodes first."""
        wanted, ranks = request.resources.node_range, request.resources.ranks
        fitting = [
            node.info
            for node in sorted(
                self.nodes.values(), key=lambda n: (-self._ranks_on(n.info.node_id), n.info.node_id)
            )
            if node.state == NodeState.READY
            and _has(node.info, request)
            and (not only_free or self._free_ranks(node.info) >= ranks)
        ]
        for count in range(min(wanted.max, len(fitting)), wanted.min - 1, -1):
            if not request.batch_size or request.batch_size % (count * ranks) == 0:
                return sorted(fitting[:count], key=lambda info: info.node_id)
        return None

    def _free_ranks(self, info: NodeInfo) -> int:
        """Ranks left on a node. One with GPUs is leased whole: its devices are not shared."""
        used = self._ranks_on(info.node_id)
        return 0 if info.gpus and used else info.max_ranks - used

    def _ranks_on(self, node_id: str) -> int:
        return sum(
            lease.ranks_per_node
            for lease in self.leases.values()
            for node in lease.nodes
            if node.node_id == node_id
        )

    def _jobs_on(self, node_id: str) -> list[str]:
        return sorted(
            lease.job_id
            for lease in self.leases.values()
            if any(node.node_id == node_id for node in lease.nodes)
        )

    # --- looking ---

    def status(self) -> ClusterStatus:
        """The whole cluster, for people."""
        return ClusterStatus(
            nodes=[
                node.model_copy(
                    update={
                        "jobs": self._jobs_on(node_id),
                        "ranks_used": self._ranks_on(node_id),
                    }
                )
                for node_id, node in sorted(self.nodes.items())
            ],
            queue=[
                QueuedRequest(
                    job_id=w.request.job_id,
                    priority=w.request.priority,
                    nodes_wanted=w.request.resources.node_range.min,
                    since=w.since,
                    reason=self._why(w.request),
                )
                for w in self._ordered()
            ],
            leases=list(self.leases.values()),
        )

    def _why(self, request: LeaseRequest) -> str:
        if self._choose(request, only_free=True) is not None:
            return "behind requests of higher priority or age"
        if self._choose(request, only_free=False) is not None:
            return "nodes that would do are in use"
        wanted = request.resources.node_range.min
        fitting = sum(_has(node.info, request) for node in self.nodes.values())
        return (
            f"needs {wanted} ready nodes with what it asks for; "
            f"{fitting} of {len(self.nodes)} known nodes have it"
        )


def _has(info: NodeInfo, request: LeaseRequest) -> bool:
    """Whether a node, idle, has what each node of the gang must have."""
    needs = request.resources
    return (
        info.max_ranks >= needs.ranks
        and info.cpu_count >= (needs.cpu or 0)
        and info.memory_bytes >= needs.memory_bytes
        and info.storage_bytes >= needs.storage_bytes
        and len(info.gpus) >= needs.gpu_count
        and (needs.gpu_type is None or any(needs.gpu_type in gpu for gpu in info.gpus))
        and (not request.node_ids or info.node_id in request.node_ids)
    )
