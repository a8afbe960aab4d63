"""The cluster and its worker nodes."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from api.bodies import Route
from api.context import Admin, Parts, Reader
from api.problems import problem_responses
from loomos.client.models import ClusterResources, WorkerDetail, WorkerList
from loomos.jobs.cluster import ClusterStatus, NodeCommand
from loomos.jobs.states import NodeState

router = APIRouter(route_class=Route, prefix="/api/v1", tags=["cluster"])

Cursor = Annotated[str, Query(max_length=300, description="`next_cursor` of a page.")]
NodeId = Annotated[str, Path(min_length=1, max_length=253)]


@router.get("/cluster/status", responses=problem_responses())
async def cluster_status(parts: Parts, who: Reader, cursor: Cursor = "") -> ClusterStatus:
    """Nodes, the queue and leases: one page, and `next_cursor` if there is more."""
    return await parts.cluster.page(cursor)


@router.get("/cluster/resources", responses=problem_responses())
async def cluster_resources(parts: Parts, who: Reader) -> ClusterResources:
    """What the ready nodes have, and what of it is in use."""
    status = await parts.cluster.status()
    ready = [node for node in status.nodes if node.state == NodeState.READY]
    return ClusterResources(
        nodes_ready=len(ready),
        nodes_total=len(status.nodes),
        ranks_used=sum(node.ranks_used for node in ready),
        ranks_total=sum(node.info.max_ranks for node in ready),
        gpus_used=sum(node.gpus_used for node in ready),
        gpus_total=sum(len(node.info.gpus) for node in ready),
        cpu_total=sum(node.info.cpu_count for node in ready),
        memory_bytes_total=sum(node.info.memory_bytes for node in ready),
        jobs_waiting=status.waiting_total + status.deferred,
    )


@router.delete("/cluster/nodes/{node_id}", responses=problem_responses(404, 409))
async def remove_node(node_id: NodeId, parts: Parts, who: Admin) -> ClusterStatus:
    """Forget a lost node."""
    return await parts.cluster.command_node(NodeCommand(node_id=node_id, action="remove"))


@router.get("/workers", responses=problem_responses())
async def list_workers(parts: Parts, who: Reader) -> WorkerList:
    """Every worker node known."""
    return WorkerList(workers=(await parts.cluster.status()).nodes)


@router.get("/workers/{node_id}", responses=problem_responses(404))
async def get_worker(node_id: NodeId, parts: Parts, who: Reader) -> WorkerDetail:
    """A worker node with its newest load."""
    return await parts.cluster.describe_worker(node_id)


@router.post("/workers/{node_id}/{action}", responses=problem_responses(404, 409))
async def command_worker(
    node_id: NodeId, action: Literal["drain", "cordon", "uncordon"], parts: Parts, who: Admin
) -> WorkerDetail:
    """Cordon: nothing new. Drain: move away what runs, then cordon. Uncordon: take work again."""
    await parts.cluster.command_node(NodeCommand(node_id=node_id, action=action))
    return await parts.cluster.describe_worker(node_id)
