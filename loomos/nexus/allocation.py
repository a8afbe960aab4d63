"""Nodes, queue and leases of a cluster: gang leases, all or nothing.

Pure state; the `Cluster` workflow feeds it events and sends what it decides. How it decides is in
`scheduling`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from loomos.errors import Conflict, NotFound
from loomos.jobs.admission import LeaseChange, LeaseDeferred
from loomos.jobs.cluster import (
    ClusterState,
    Lease,
    LeaseRequest,
    LeaseRevoked,
    NodeCommand,
    NodeHistory,
    NodeInfo,
    NodeStatus,
    ReleaseRequest,
    SchedulerConfig,
)
from loomos.jobs.states import NodeState
from loomos.nexus.admission import MOST_QUEUE_BYTES, Lobby, farthest
from loomos.nexus.policies import find_policy
from loomos.nexus.scheduling import DIGEST_LENGTH, Grant, Round
from loomos.nexus.usage import Usage, Waiting

REMEMBERED = 64
"""Workloads whose best step is remembered."""
REMEMBERED_INPUTS = 16
"""Inputs that are remembered of a node, by the first characters of their digests."""
LEARNING_RATE = 0.3
"""Weight of the newest measurement in a node's speed."""


@dataclass
class Allocation:
    """Nodes, queue and leases of a cluster."""

    nodes: dict[str, NodeStatus] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    """The queue, by job."""
    leases: dict[int, Lease] = field(default_factory=dict)
    next_epoch: int = 1
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    history: dict[str, NodeHistory] = field(default_factory=dict)
    best_step_s: dict[str, float] = field(default_factory=dict)
    lobby: Lobby = field(default_factory=Lobby)
    version: int = 0
    """Grows with every change, so that what was computed of it can be kept until the next."""
    has_more: bool = False
    """Whether the newest round left something undecided."""
    _used: Usage | None = None

    @classmethod
    def from_state(cls, state: ClusterState) -> Allocation:
        """Restore what `to_state` gave."""
        return cls(
            nodes={node.info.node_id: node for node in state.nodes},
            waiting={asked.job_id: Waiting(asked, since) for asked, since in state.queue},
            leases={lease.epoch: lease for lease in state.leases},
            next_epoch=state.next_epoch,
            config=state.config,
            history=dict(state.history),
            best_step_s=dict(state.best_step_s),
            lobby=Lobby({each.job_id: each for each in state.deferred}, state.return_at),
        )

    def to_state(self) -> ClusterState:
        """Everything, as a message."""
        return ClusterState(
            nodes=list(self.nodes.values()),
            queue=[(waiting.request, waiting.since) for waiting in self.waiting.values()],
            leases=list(self.leases.values()),
            next_epoch=self.next_epoch,
            config=self.config,
            history=self.history,
            best_step_s=self.best_step_s,
            deferred=list(self.lobby.waiting.values()),
            return_at=self.lobby.return_at,
        )

    @property
    def queue(self) -> list[Waiting]:
        """Requests that wait for nodes, in the order in which they came."""
        return list(self.waiting.values())

    @property
    def is_busy(self) -> bool:
        """Whether time alone may bring something to decide."""
        return bool(self.leases or self.waiting or self.lobby.waiting)

    # --- nodes ---

    def register(self, info: NodeInfo, now: datetime) -> list[tuple[Lease, LeaseRevoked]]:
        """A node says hello. A new incarnation means that the old one is gone."""
        self.version += 1
        known = self.nodes.get(info.node_id)
        revoked: list[tuple[Lease, LeaseRevoked]] = []
        if known is not None and known.info.incarnation != info.incarnation:
            revoked = self.lose(info.node_id, known.info.incarnation, now)
        state = NodeState.READY
        if known is not None and known.state in (NodeState.CORDONED, NodeState.DRAINING):
            state = known.state
        if known is None or known.info != info or known.state != state:
            self.nodes[info.node_id] = NodeStatus(info=info, state=state, since=now)
            self._used = None
        return revoked

    def lose(
        self, node_id: str, incarnation: str, now: datetime
    ) -> list[tuple[Lease, LeaseRevoked]]:
        """A node's heartbeats stopped: its leases end."""
        self.version += 1
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
        self.version += 1
        node_id = command.node_id
        if command.action == "remove":
            del self.nodes[node_id]
            self.history.pop(node_id, None)
            self._used = None
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
            self._used = None

    def _revoke(
        self, node_id: str, reason: str, lost: list[str]
    ) -> list[tuple[Lease, LeaseRevoked]]:
        """Ask holders to let go of a node; a lease ends when it is released, or at once if lost."""
        found = [
            lease
            for lease in self.leases.values()
            if any(node.node_id == node_id for node in lease.nodes)
        ]
        for lease in found:
            if lost:
                self._end(lease)
            else:
                self.leases[lease.epoch] = lease.model_copy(update={"is_revoked": True})
        return [
            (lease, LeaseRevoked(epoch=lease.epoch, lost_nodes=lost, reason=reason))
            for lease in found
        ]

    # --- requests ---

    def request(self, request: LeaseRequest, now: datetime) -> None:
        """Queue a request; a second one of the same job replaces the first.

        The queue may then be longer than its limit: `turn_away` shortens it. Thousands of requests
        may come at a time, so each costs as little here as there is to do.
        """
        self.version += 1
        since = self.lobby.since(request, now)
        before = self.waiting.get(request.job_id)
        self.waiting[request.job_id] = Waiting(request, before.since if before else since)

    def turn_away(
        self, now: datetime, most: int | None = None, most_bytes: int | None = MOST_QUEUE_BYTES
    ) -> list[LeaseDeferred]:
        """Those that find no room in the queue, and wait for admission from now on.

        Args:
            now: the time.
            most: requests that stay. Default: as many as the queue may have.
            most_bytes: what those that stay may have together; None for no such limit.
        """
        surplus = len(self.waiting) - (self.config.queue_limit if most is None else most)
        surplus_bytes = 0
        if most_bytes is not None:
            surplus_bytes = sum(each.size_bytes for each in self.waiting.values()) - most_bytes
        if surplus <= 0 and surplus_bytes <= 0:
            return []
        self.version += 1
        leaving = farthest(self.waiting.values(), surplus, self.config, now, surplus_bytes)
        for last in leaving:
            del self.waiting[last.request.job_id]
        return [self.lobby.enter(last, len(self.waiting), now) for last in leaving]

    def call(self, now: datetime, most: int | None = None) -> list[str]:
        """Jobs that waited for admission and may ask again now; at most `most` of them."""
        return self.lobby.call(self.queue, self.config.queue_limit, now, most)

    def forget(self, job_id: str) -> None:
        """A job that waited for admission is gone."""
        self.version += 1
        self.lobby.leave(job_id)

    def change(self, change: LeaseChange) -> None:
        """A job has another priority now, whether it waits or holds nodes."""
        self.version += 1
        who = (change.job_id, change.run_id)
        update = {"priority": change.priority}
        waiting = self.waiting.get(change.job_id)
        if waiting is not None and waiting.request.run_id == change.run_id:
            changed = waiting.request.model_copy(update=update)
            self.waiting[change.job_id] = Waiting(changed, waiting.since)
        for lease in list(self.leases.values()):
            if (lease.job_id, lease.run_id) == who and lease.request is not None:
                request = lease.request.model_copy(update=update)
                self.leases[lease.epoch] = lease.model_copy(update={"request": request})
        self.lobby.prioritise(change.job_id, change.priority)

    def release(self, release: ReleaseRequest, now: datetime) -> None:
        """Give a lease back, or withdraw the job's request. Doing it twice is no error."""
        self.version += 1
        if release.epoch == 0:
            self.lobby.leave(release.job_id)
            waiting = self.waiting.get(release.job_id)
            if waiting is not None and waiting.request.run_id == release.run_id:
                del self.waiting[release.job_id]
            return
        lease = self.leases.get(release.epoch)
        if lease is not None and lease.job_id == release.job_id:
            self._end(lease)
            self._learn(lease, release)
        draining = [n for n, node in self.nodes.items() if node.state == NodeState.DRAINING]
        held = {node.node_id for lease in self.leases.values() for node in lease.nodes}
        for node_id in draining:
            if node_id not in held:
                self._set_state(node_id, NodeState.CORDONED, now)

    def decide(self, now: datetime) -> tuple[list[Lease], list[tuple[Lease, LeaseRevoked]]]:
        """Grant what can be granted now, in order, and ask back what stands in the way."""
        made = self.round(now).decide()
        self.has_more = made.is_cut
        if made.grants or made.revocations:
            self.version += 1
        asked_back = []
        for lease, reason in made.revocations:
            self.leases[lease.epoch] = lease.model_copy(update={"is_revoked": True})
            asked_back.append((lease, LeaseRevoked(epoch=lease.epoch, reason=reason)))
        given = [self._lease(grant, now) for grant in made.grants]
        for lease in given:
            self.waiting.pop(lease.job_id, None)
        return given, asked_back

    def configure(self, config: SchedulerConfig) -> None:
        """Decide in another way from now on.

        Raises:
            InvalidInput: there is no such policy.
        """
        find_policy(config.policy)
        self.version += 1
        self.config = config

    def round(self, now: datetime) -> Round:
        """One round of decisions over things as they are; making it changes nothing."""
        return Round(
            self.usage(), list(self.leases.values()), self.queue, self.config, self.history, now
        )

    def usage(self) -> Usage:
        """What is free. Kept between rounds; made anew after a change of nodes."""
        if self._used is None:
            self._used = Usage(self.nodes, self.leases.values())
        return self._used

    def _lease(self, grant: Grant, now: datetime) -> Lease:
        request, usage = grant.waiting.request, self.usage()
        nodes = [self.nodes[node_id].info for node_id in sorted(grant.node_ids)]
        lease = Lease(
            epoch=self.next_epoch,
            job_id=request.job_id,
            run_id=request.run_id,
            ticket=request.ticket,
            nodes=nodes,
            ranks_per_node=request.resources.ranks,
            devices=[usage.devices(info, grant.waiting) for info in nodes],
            request=request,
            granted_at=now,
            is_backfill=grant.is_backfill,
            is_protected=grant.is_protected,
        )
        self.next_epoch += 1
        self.leases[lease.epoch] = lease
        usage.take(lease)
        for info in nodes:
            known = self.history.get(info.node_id, NodeHistory())
            inputs = [digest[:DIGEST_LENGTH] for digest in request.affinity]
            before = [digest[:DIGEST_LENGTH] for digest in known.affinity]
            recent = [digest for digest in before if digest not in inputs] + inputs
            self.history[info.node_id] = known.model_copy(
                update={"affinity": recent[-REMEMBERED_INPUTS:]}
            )
        return lease

    def _end(self, lease: Lease) -> None:
        del self.leases[lease.epoch]
        if self._used is not None:
            self._used.give(lease)

    def _learn(self, lease: Lease, release: ReleaseRequest) -> None:
        """Compare the step time of a gang with the best that was seen of the same workload."""
        if release.step_s is None or release.step_s <= 0:
            return
        best = min(release.step_s, self.best_step_s.pop(release.workload, release.step_s))
        self.best_step_s[release.workload] = best
        while len(self.best_step_s) > REMEMBERED:
            del self.best_step_s[next(iter(self.best_step_s))]
        for node in lease.nodes:
            known = self.history.get(node.node_id, NodeHistory())
            speed = known.speed + LEARNING_RATE * (best / release.step_s - known.speed)
            self.history[node.node_id] = known.model_copy(update={"speed": speed})
