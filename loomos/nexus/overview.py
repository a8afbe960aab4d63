"""What people see of the cluster: pages of its status, and the place of one job.

The queue's order and reasons are those of a round of decisions. One is played after a change, when
somebody asks, and serves everybody who asks until the next change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

from loomos.errors import InvalidInput
from loomos.jobs.cluster import (
    ClusterStatus,
    Lease,
    NodeHistory,
    NodeStatus,
    Place,
    ProjectShare,
    QueuedRequest,
    StatusQuery,
)
from loomos.jobs.message import Message
from loomos.nexus.allocation import Allocation
from loomos.nexus.amounts import capacity
from loomos.nexus.usage import Holding, Waiting

PARTS = ("nodes", "queue", "leases")
"""What pages hold, in this order."""
M = TypeVar("M", bound=Message)


class Overview:
    """Looks at an allocation and changes nothing.

    Args:
        cluster: what is looked at.
    """

    def __init__(self, cluster: Allocation) -> None:
        self._cluster = cluster
        self._queue: dict[str, QueuedRequest] = {}
        self._version = -1

    def status(self, now: datetime, query: StatusQuery | None = None) -> ClusterStatus:
        """One page of the whole cluster.

        Args:
            now: the time.
            query: which page. Default: the first.

        Raises:
            InvalidInput: the cursor is not one that a page gave.
        """
        query = query or StatusQuery()
        cluster = self._cluster
        part, _, after = (query.cursor or "nodes:").partition(":")
        if part not in PARTS or (after and part != "nodes" and not after.isdecimal()):
            raise InvalidInput("cursor: not one that a page gave")
        left = query.most_bytes
        made: dict[str, list[Any]] = {name: [] for name in PARTS}
        cursor = None
        for name in PARTS[PARTS.index(part) :]:
            for key, item in self._items(name, after, now):
                left -= len(item.model_dump_json())
                if left < 0 and any(made.values()):
                    cursor = f"{name}:{after}"
                    break
                made[name].append(item)
                after = key
            if cursor is not None:
                break
            after = ""
        is_first = not query.cursor
        return ClusterStatus(
            **made,
            shares=self._shares() if is_first else [],
            config=cluster.config,
            nodes_total=len(cluster.nodes),
            waiting_total=len(cluster.queue),
            leases_total=len(cluster.leases),
            deferred=len(cluster.lobby.waiting),
            next_cursor=cursor,
        )

    def place_of(self, job_id: str, now: datetime) -> Place:
        """Where a job's request is."""
        queue = self.queue(now)
        if job_id in queue:
            return Place(queued=queue[job_id])
        deferred = self._cluster.lobby.waiting.get(job_id)
        if deferred is None:
            return Place()
        before = self._cluster.lobby.order(self._cluster.queue).index(job_id)
        limit = self._cluster.config.queue_limit
        return Place(
            queued=QueuedRequest(
                job_id=job_id,
                project=deferred.project,
                priority=deferred.priority,
                position=len(queue) + before + 1,
                nodes_wanted=deferred.nodes_wanted,
                since=deferred.since,
                reason=f"waits for admission: the queue is full ({limit} requests)",
            )
        )

    def queue(self, now: datetime) -> dict[str, QueuedRequest]:
        """Requests that wait, by job, in the order in which they will be served."""
        cluster = self._cluster
        if self._version != cluster.version:
            waiting = {each.request.job_id: each for each in cluster.queue}
            # What would be granted now waits for nothing but its turn in the workflow.
            reasons = cluster.round(now).decide(explain=True).reasons
            reasons |= {job: "is about to get nodes" for job in waiting if job not in reasons}
            self._queue = {
                job: _queued(waiting[job], position, reason)
                for position, (job, reason) in enumerate(reasons.items(), 1)
            }
            self._version = cluster.version
        return self._queue

    # --- parts of pages ---

    def _items(self, part: str, after: str, now: datetime) -> Iterator[tuple[str, Message]]:
        """What a part of the status holds after a key, each with its key."""
        if part == "nodes":
            yield from self._nodes(after)
        elif part == "queue":
            places = list(self.queue(now).values())
            yield from _from(places, int(after or 0), lambda place: place.position)
        else:
            leases = list(self._cluster.leases.values())
            yield from _from(leases, int(after or 0), lambda lease: lease.epoch)

    def _nodes(self, after: str) -> Iterator[tuple[str, NodeStatus]]:
        cluster, usage = self._cluster, self._cluster.usage()
        jobs = jobs_by_node(cluster.leases.values())
        for node_id, node in sorted(cluster.nodes.items()):
            if node_id <= after:
                continue
            whole = capacity(node.info)
            yield (
                node_id,
                node.model_copy(
                    update={
                        "jobs": jobs[node_id],
                        "ranks_used": whole.ranks - usage.free[node_id].ranks,
                        "gpus_used": whole.gpus - usage.free[node_id].gpus,
                        "speed": cluster.history.get(node_id, NodeHistory()).speed,
                    }
                ),
            )

    def _shares(self) -> list[ProjectShare]:
        cluster, usage = self._cluster, self._cluster.usage()
        waiting: dict[str, int] = defaultdict(int)
        for each in cluster.queue:
            waiting[each.request.project] += 1
        leases = cluster.leases.values()
        projects = set(waiting) | {lease.request.project for lease in leases if lease.request}

        def share(project: str) -> ProjectShare:
            amounts, nodes = usage.by_project.get(project, Holding())
            return ProjectShare(
                project=project,
                dominant_share=usage.share(amounts),
                weight=cluster.config.weights.get(project, 1.0),
                nodes=nodes,
                gpus=amounts.gpus,
                ranks=amounts.ranks,
                waiting=waiting[project],
            )

        return [share(project) for project in sorted(projects)]


def jobs_by_node(leases: Iterable[Lease]) -> dict[str, list[str]]:
    """Jobs that hold something of each node, by name."""
    found: dict[str, set[str]] = defaultdict(set)
    for lease in leases:
        for node in lease.nodes:
            found[node.node_id].add(lease.job_id)
    return defaultdict(list, {node_id: sorted(jobs) for node_id, jobs in found.items()})


def _queued(waiting: Waiting, position: int, reason: str) -> QueuedRequest:
    request = waiting.request
    return QueuedRequest(
        job_id=request.job_id,
        project=request.project,
        priority=request.priority,
        position=position,
        nodes_wanted=request.resources.node_range.min,
        since=waiting.since,
        deadline=request.deadline,
        reason=reason,
    )


def _from(items: Sequence[M], after: int, key: Callable[[M], int]) -> Iterator[tuple[str, M]]:
    yield from ((str(key(item)), item) for item in items if key(item) > after)
