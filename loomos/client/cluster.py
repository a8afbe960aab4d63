"""The cluster straight on Temporal: nodes, leases, the queue, how it decides."""

from __future__ import annotations

import re

from temporalio.client import Client

from loomos.client.answers import answered
from loomos.client.models import NodeLoad, WorkerDetail
from loomos.errors import InvalidInput, NotFound
from loomos.jobs.cluster import (
    AdviceList,
    ClusterStatus,
    Forecast,
    LeaseRequest,
    NodeCommand,
    Place,
    QueuedRequest,
    SchedulerConfig,
    StatusQuery,
)
from loomos.jobs.names import CLUSTER_WORKFLOW_ID

_CURSOR = re.compile(r"nodes:[^\x00-\x1f\ud800-\udfff]{0,253}|(?:queue|leases):[0-9]{0,18}")


class ClusterClient:
    """Looks at and steers the cluster."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._handle = client.get_workflow_handle(CLUSTER_WORKFLOW_ID)

    async def status(self) -> ClusterStatus:
        """All nodes, queue and leases, however many pages that is."""
        found = await self.page()
        while found.next_cursor:
            found = found.joined(await self.page(found.next_cursor))
        return found

    async def page(self, cursor: str = "") -> ClusterStatus:
        """One page of nodes, queue and leases; an empty one if no node has ever registered.

        Args:
            cursor: `next_cursor` of the page before; empty for the first.

        Raises:
            InvalidInput: the cursor is not one that a page gave.
        """
        if cursor and not _CURSOR.fullmatch(cursor):
            raise InvalidInput("cursor: not one that a page gave")
        query = StatusQuery(cursor=cursor)
        try:
            return await answered(self._handle.query("status", query, result_type=ClusterStatus))
        except NotFound:
            return ClusterStatus()

    async def place_of(self, job_id: str) -> QueuedRequest | None:
        """A job's place in the queue and why it waits; None if it does not wait for nodes."""
        try:
            found: Place = await answered(self._handle.query("place_of", job_id, result_type=Place))
        except NotFound:
            return None
        return found.queued

    async def why_never(self, request: LeaseRequest) -> str:
        """Why the ready nodes could not serve a request even if all were idle; empty if so."""
        try:
            return await answered(self._handle.query("why_never", request, result_type=str))
        except NotFound:
            return "there are no nodes yet"

    async def command_node(self, command: NodeCommand) -> ClusterStatus:
        """Cordon, uncordon, drain or remove a node."""
        return await answered(
            self._handle.execute_update("command_node", command, result_type=ClusterStatus)
        )

    async def configure(self, config: SchedulerConfig) -> ClusterStatus:
        """Have the cluster decide in another way.

        Raises:
            InvalidInput: there is no such policy.
            NotFound: no node has ever registered, so there is no cluster yet.
        """
        return await answered(
            self._handle.execute_update("configure", config, result_type=ClusterStatus)
        )

    async def advice(self) -> AdviceList:
        """What waiting and running jobs could ask for differently."""
        try:
            return await answered(self._handle.query("advice", result_type=AdviceList))
        except NotFound:
            return AdviceList()

    async def forecast(self, request: LeaseRequest) -> Forecast:
        """When a request would be served, if everything takes as long as estimated."""
        try:
            return await answered(self._handle.query("forecast", request, result_type=Forecast))
        except NotFound:
            return Forecast(reason="there are no nodes yet")

    async def describe_worker(self, node_id: str) -> WorkerDetail:
        """A node with its newest load, which its heartbeat carries."""
        status = await self.status()
        node = next((n for n in status.nodes if n.info.node_id == node_id), None)
        if node is None:
            known = ", ".join(n.info.node_id for n in status.nodes) or "none"
            raise NotFound(f"no node {node_id!r}; known: {known}")
        description = await answered(self._handle.describe())
        for pending in description.raw_description.pending_activities:
            if (
                pending.activity_type.name == "hold_node"
                and pending.activity_options.task_queue.name == node.info.task_queue
            ):
                details = await self._client.data_converter.decode(
                    list(pending.heartbeat_details.payloads)
                )
                return WorkerDetail(
                    **node.model_dump(),
                    load=NodeLoad.model_validate(details[0]) if details else None,
                    last_heartbeat_at=pending.last_heartbeat_time.ToDatetime(),
                )
        return WorkerDetail(**node.model_dump())
