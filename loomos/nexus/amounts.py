"""What nodes have and requests need, as amounts that can be added and compared."""

from __future__ import annotations

from typing import NamedTuple

from loomos.jobs.cluster import NodeInfo
from loomos.manifest import Resources


class Amounts(NamedTuple):
    """So much of each resource."""

    ranks: int = 0
    """Processes."""
    cpu: int = 0
    """Cores."""
    memory: int = 0
    """Bytes of memory."""
    storage: int = 0
    """Bytes of disk."""
    gpus: int = 0
    """Devices."""

    def covers(self, need: Amounts) -> bool:
        """Whether there is enough of everything."""
        return (
            self.ranks >= need.ranks
            and self.gpus >= need.gpus
            and self.cpu >= need.cpu
            and self.memory >= need.memory
            and self.storage >= need.storage
        )

    def plus(self, other: Amounts) -> Amounts:
        """The sum."""
        return Amounts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Amounts) -> Amounts:
        """The difference."""
        return Amounts(*(a - b for a, b in zip(self, other, strict=True)))


def capacity(info: NodeInfo) -> Amounts:
    """All that a node has."""
    return Amounts(
        info.max_ranks, info.cpu_count, info.memory_bytes, info.storage_bytes, len(info.gpus)
    )


def demand(resources: Resources, info: NodeInfo) -> Amounts:
    """What a run takes of a node. One that names no number of GPUs takes all of a node's."""
    gpus = resources.gpu_count
    return Amounts(
        resources.ranks,
        resources.cpu or 0,
        resources.memory_bytes,
        resources.storage_bytes,
        len(info.gpus) if gpus is None else gpus,
    )


def has_what_it_takes(info: NodeInfo, resources: Resources) -> bool:
    """Whether a node, idle, is what each node of the gang must be."""
    return (
        capacity(info).covers(demand(resources, info))
        and (resources.gpu_type is None or any(resources.gpu_type in gpu for gpu in info.gpus))
        and resources.node_type in (None, info.node_type)
        and resources.region in (None, info.region)
        and resources.node_labels.items() <= info.labels.items()
        and (
            resources.min_bandwidth_gbps is None
            or (info.bandwidth_gbps or 0) >= resources.min_bandwidth_gbps
        )
        and (
            resources.max_latency_ms is None
            or (info.latency_ms is not None and info.latency_ms <= resources.max_latency_ms)
        )
    )
