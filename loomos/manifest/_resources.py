"""What a run needs of the cluster, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from loomos.limits import Gibibytes, NodeLabels, Positive, Size, Word
from loomos.manifest._document_model import Document


class NodeRange(Document):
    """An elastic gang: any number of nodes in the range that divides the batch."""

    min: Annotated[int, Field(ge=1, le=10_000)]
    """Fewest nodes to run with."""
    max: Annotated[int, Field(ge=1, le=10_000)]
    """Most nodes to take."""

    def faults(self) -> Iterator[str]:
        """`min` is not above `max`."""
        if self.min > self.max:
            yield f"min ({self.min}) is above max ({self.max}); swap them"


class Resources(Document):
    """What one run needs of the cluster."""

    nodes: Annotated[int, Field(ge=1, le=10_000)] | NodeRange = 1
    """Nodes of the gang, or `{min, max}` for an elastic one."""
    ranks_per_node: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes per node. Default: `gpu_count`, or 1."""
    gpu_count: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of each node; 0 for none. Default: all of a node that has any, shared with nobody."""
    gpu_type: Word | None = None
    """Substring of the GPU's name, such as A100."""
    cpu: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Cores each node must have; ranks share them as torch threads. Default: one thread a rank."""
    memory: Size | None = None
    """Memory each node must have, such as 128Gi."""
    memory_gb: Gibibytes | None = None
    """The same in GiB."""
    storage: Size | None = None
    """Free disk each node must have, such as 500Gi."""
    storage_gb: Gibibytes | None = None
    """The same in GiB."""

    node_type: Word | None = None
    """Only nodes of this type, as their workers are configured."""
    region: Word | None = None
    """Only nodes of this region."""
    node_labels: NodeLabels = {}
    """Only nodes with these labels."""
    min_bandwidth_gbps: Positive | None = None
    """Only nodes with at least this bandwidth, in Gbit/s, by their configuration."""
    max_latency_ms: Positive | None = None
    """Only nodes with at most this latency to others, in ms, by their configuration."""

    def faults(self) -> Iterator[str]:
        """Memory and storage are given once each."""
        for field in ("memory", "storage"):
            if getattr(self, field) is not None and getattr(self, f"{field}_gb") is not None:
                yield f"give {field} or {field}_gb, not both"

    @property
    def node_range(self) -> NodeRange:
        """The gang's size as a range."""
        return (
            self.nodes
            if isinstance(self.nodes, NodeRange)
            else NodeRange(min=self.nodes, max=self.nodes)
        )

    @property
    def ranks(self) -> int:
        """Ranks per node."""
        return self.ranks_per_node or self.gpu_count or 1

    @property
    def memory_bytes(self) -> int:
        """Memory a node must have."""
        return self.memory if self.memory is not None else (self.memory_gb or 0) * 1024**3

    @property
    def storage_bytes(self) -> int:
        """Disk a node must have free."""
        return self.storage if self.storage is not None else (self.storage_gb or 0) * 1024**3
