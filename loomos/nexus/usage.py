"""What of each ready node is free, and which nodes would do for a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from loomos.jobs.cluster import Lease, LeaseRequest, NodeInfo, NodeStatus
from loomos.jobs.states import NodeState
from loomos.nexus.amounts import Amounts, capacity, demand, has_what_it_takes

ANY_RESOURCES = ("ranks", "cpu", "memory", "gpus")
"""Resources by which shares are compared."""


@dataclass
class Waiting:
    """A request in the queue."""

    request: LeaseRequest
    since: datetime

    @cached_property
    def shape(self) -> tuple[Any, ...]:
        """Equal for requests for which the same nodes would do."""
        request = self.request
        resources = request.resources.model_dump_json(exclude_defaults=True)
        return (resources, tuple(request.node_ids), request.batch_size, request.is_recovery)

    @cached_property
    def size_bytes(self) -> int:
        """Of the request as JSON: what it adds to the cluster's state."""
        return len(self.request.model_dump_json(exclude_defaults=True).encode())

    @cached_property
    def counts(self) -> list[int]:
        """Sizes that the gang may have, ascending."""
        wanted, ranks = self.request.resources.node_range, self.request.resources.ranks
        batch = self.request.batch_size
        return [
            count
            for count in range(wanted.min, wanted.max + 1)
            if not batch or batch % (count * ranks) == 0
        ]


class Holding(NamedTuple):
    """What a project holds."""

    amounts: Amounts = Amounts()
    """In all."""
    nodes: int = 0
    """Nodes, whole or in part, once for each lease."""


class Usage:
    """Nodes that take work, and what of them is free. Kept up to date lease by lease.

    Args:
        nodes: every node known.
        leases: every lease in force.
    """

    def __init__(self, nodes: Mapping[str, NodeStatus], leases: Iterable[Lease]) -> None:
        self.ready = {
            node_id: node.info
            for node_id, node in sorted(nodes.items())
            if node.state == NodeState.READY
        }
        self.total = total(capacity(info) for info in self.ready.values())
        self.free = {node_id: capacity(node.info) for node_id, node in nodes.items()}
        self.free_gpus = {n: set(range(len(node.info.gpus))) for n, node in nodes.items()}
        self.holders: dict[str, int] = dict.fromkeys(nodes, 0)
        self.by_project: dict[str, Holding] = {}
        self._candidates: dict[tuple[Any, ...], dict[str, Amounts]] = {}
        for lease in leases:
            self.take(lease)

    def candidates(self, waiting: Waiting) -> dict[str, Amounts]:
        """Ready nodes that would do if they were idle, with what the request takes of each."""
        found = self._candidates.get(waiting.shape)
        if found is None:
            request = waiting.request
            found = self._candidates[waiting.shape] = {
                node_id: demand(request.resources, info)
                for node_id, info in self.ready.items()
                if (not request.node_ids or node_id in request.node_ids)
                and has_what_it_takes(info, request.resources)
            }
        return found

    def take(self, lease: Lease) -> None:
        """A lease begins."""
        self._count(lease, 1)
        for node_id, amounts in taken(lease).items():
            if node_id in self.free:
                self.free[node_id] = self.free[node_id].minus(amounts)
                self.holders[node_id] += 1
        for node, devices in zip(lease.nodes, lease.devices, strict=False):
            self.free_gpus.get(node.node_id, set()).difference_update(devices)

    def give(self, lease: Lease) -> None:
        """A lease ends."""
        self._count(lease, -1)
        for node_id, amounts in taken(lease).items():
            if node_id in self.free:
                self.free[node_id] = self.free[node_id].plus(amounts)
                self.holders[node_id] -= 1
        for node, devices in zip(lease.nodes, lease.devices, strict=False):
            self.free_gpus.get(node.node_id, set()).update(devices)

    def _count(self, lease: Lease, sign: int) -> None:
        if lease.request is not None:
            held = self.by_project.get(lease.request.project, Holding())
            amounts = total(taken(lease).values())
            self.by_project[lease.request.project] = Holding(
                held.amounts.plus(amounts) if sign > 0 else held.amounts.minus(amounts),
                held.nodes + sign * len(lease.nodes),
            )

    def devices(self, info: NodeInfo, waiting: Waiting) -> list[int]:
        """GPUs of a node that a request would get."""
        count = demand(waiting.request.resources, info).gpus
        return sorted(self.free_gpus[info.node_id])[:count]

    def available(self, node_id: str, free: Amounts) -> float:
        """Free share of a node: of the resource of which the least is left."""
        whole = capacity(self.ready[node_id])
        return min(
            (getattr(free, r) / getattr(whole, r) for r in ANY_RESOURCES if getattr(whole, r)),
            default=0.0,
        )

    def share(self, amounts: Amounts) -> float:
        """Dominant share of the cluster (dominant resource fairness, Ghodsi et al., NSDI 2011)."""
        return max(
            (
                getattr(amounts, r) / getattr(self.total, r)
                for r in ANY_RESOURCES
                if getattr(self.total, r)
            ),
            default=0.0,
        )


def taken(lease: Lease) -> dict[str, Amounts]:
    """What a lease holds of each of its nodes."""
    if lease.request is None:
        return {node.node_id: Amounts(ranks=lease.ranks_per_node) for node in lease.nodes}
    resources = lease.request.resources
    return {node.node_id: demand(resources, node) for node in lease.nodes}


def total(amounts: Iterable[Amounts]) -> Amounts:
    """The sum of all."""
    found = Amounts()
    for each in amounts:
        found = found.plus(each)
    return found
