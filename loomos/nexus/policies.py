"""Placement policies: of the nodes that would do, which are taken.

A policy scores one node for one request; the gang gets the nodes with the highest scores. Policies
run inside the `Cluster` workflow, so they are pure: the same arguments, the same score. Others
than the built-in ones are found by the entry point group `loomos.scheduling_policies`, in the
environment of the control worker.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from typing import ClassVar, NotRequired, TypedDict

from loomos.errors import InvalidInput
from loomos.jobs.cluster import LeaseRequest

ENTRY_POINTS = "loomos.scheduling_policies"


class WorkerStats(TypedDict):
    """A node, as a policy sees it."""

    node_id: str
    """Its name."""
    available_resources: float
    """Share of it that is free: of the resource of which the least is left, 0 to 1."""
    ranks_free: int
    """Ranks that it could run besides what it runs."""
    gpus_free: int
    """GPUs that nobody has."""
    gpus: int
    """GPUs in all."""
    speed: float
    """Its step times against the best node's with the same workload: 1 is best."""
    cost_per_hour: float
    """What it costs."""
    data_affinity: float
    """Share of the request's inputs that it had lately, 0 to 1."""
    region: NotRequired[str]
    """Where it stands."""


class SchedulingPolicy(ABC):
    """Decides between nodes that would all do.

    Example:
        >>> class Cheapest(SchedulingPolicy):
        ...     def score_placement(self, job, worker_stats):
        ...         return -worker_stats["cost_per_hour"]
        >>> Cheapest().name
        'cheapest'
    """

    name: ClassVar[str]
    """By which it is chosen. Default: the class's name in kebab case, without `Policy`."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            stem = cls.__name__.removesuffix("Policy") or cls.__name__
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", stem).lower()

    @abstractmethod
    def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
        """How good a node is for a request; higher is better.

        Args:
            job: what waits for nodes.
            worker_stats: one node.
        """


class BinPackPolicy(SchedulingPolicy):
    """The fullest node first, so that whole nodes stay free for gangs."""

    def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
        """The share that is in use, nodes with GPUs last for those who want none."""
        spares_gpus = 0.0 if job.resources.gpu_count or not worker_stats["gpus"] else 1.0
        return -worker_stats["available_resources"] - spares_gpus


class SpreadPolicy(SchedulingPolicy):
    """The emptiest node first, so that a lost node hurts little."""

    def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
        """The share that is free."""
        return worker_stats["available_resources"]


class PriorityFirstPolicy(SchedulingPolicy):
    """Urgent requests get the emptiest nodes, patient ones the fullest."""

    def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
        """The share that is free, weighted from +2 (priority 1) to -2 (priority 5)."""
        return (3 - job.priority) * worker_stats["available_resources"]


class PerformanceWeightedPolicy(SchedulingPolicy):
    """The node with the shortest measured steps first."""

    def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
        """The speed; among equals the fuller."""
        return worker_stats["speed"] - 1e-6 * worker_stats["available_resources"]


class CostAwarePolicy(SchedulingPolicy):
    """The node on which a step costs least first."""

    def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
        """Minus the cost of an hour's worth of steps of the best node."""
        cost = worker_stats["cost_per_hour"] / max(worker_stats["speed"], 1e-6)
        return -cost - 1e-6 * worker_stats["available_resources"]


_POLICIES: dict[str, SchedulingPolicy] = {
    policy.name: policy
    for policy in (
        BinPackPolicy(),
        SpreadPolicy(),
        PriorityFirstPolicy(),
        PerformanceWeightedPolicy(),
        CostAwarePolicy(),
    )
}


def load_policies() -> None:
    """Add what other packages offer; a process that decides calls it once, when it starts."""
    for entry in entry_points(group=ENTRY_POINTS):
        _POLICIES.setdefault(entry.name, entry.load()())


def name_of(policy: SchedulingPolicy) -> str:
    """The name by which a cluster runs this very policy.

    Raises:
        InvalidInput: it is a program's own, which no cluster has; says how it gets it.
    """
    load_policies()
    made = type(policy)
    for name, known in _POLICIES.items():
        if type(known) is made:
            return name
    also = f" It has another of the name {made.name!r}." if made.name in _POLICIES else ""
    where = made.__module__ if made.__module__ != "__main__" else "your_package.module"
    raise InvalidInput(
        f"policy: {made.__qualname__} is this program's own; the cluster decides in its control "
        f"worker and cannot run it.{also} Put it into a package whose pyproject.toml has "
        f"[project.entry-points.{ENTRY_POINTS!r}] {made.name} = '{where}:{made.__name__}', "
        f"install that where the control worker runs, and choose it by its name, {made.name!r}"
    )


def find_policy(name: str) -> SchedulingPolicy:
    """The policy of a name.

    Raises:
        InvalidInput: this process knows none.
    """
    try:
        return _POLICIES[name]
    except KeyError:
        raise InvalidInput(
            f"policy: no {name!r}; known: {', '.join(sorted(_POLICIES))}. Others come by the entry "
            f"point group {ENTRY_POINTS!r} of what is installed where the control worker runs"
        ) from None
