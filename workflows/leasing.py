"""How a workflow gets nodes from the cluster, and gives them back.

Held by a workflow that has the signals `lease_granted` and `lease_revoked`, which it passes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.cluster import Lease, LeaseRequest, LeaseRevoked, ReleaseRequest
    from loomos.jobs.names import CLUSTER_WORKFLOW_ID
    from loomos.manifest import Resources


class Want(NamedTuple):
    """What a workflow needs of the cluster now."""

    resources: Resources
    """What each node must have, and how many."""
    submitted_at: datetime
    """Its age in the queue, however often it comes back."""
    priority: int
    """1 is served first."""
    batch_size: int = 0
    """Gang sizes must divide it; 0 for no such rule."""
    node_ids: Sequence[str] = ()
    """If given, only these nodes will do."""


class Leasing:
    """One lease at a time for one workflow.

    Args:
        holder: the workflow's id, by which the cluster knows it.
        want: what is needed, asked for each time a request is sent.
    """

    def __init__(self, holder: str, want: Callable[[], Want]) -> None:
        self._holder, self._want = holder, want
        self._ticket = 0
        self._waits = False
        self.lease: Lease | None = None
        self.revoked: LeaseRevoked | None = None

    async def acquire(self, until: Callable[[], bool] = lambda: False) -> Lease | None:
        """Wait for nodes, however long it takes; None if `until` holds before there are any."""
        self._ticket += 1
        self.lease, self.revoked = None, None
        self._waits = True
        try:
            await self._request()
            await workflow.wait_condition(lambda: self.lease is not None or until())
        except asyncio.CancelledError:
            await self.release()
            raise
        finally:
            self._waits = False
        if self.lease is None:
            await self.release()
        return self.lease

    async def ask_again(self) -> None:
        """What is needed has changed: tell the cluster, if it has not answered yet."""
        if self._waits:
            await self._request()

    async def _request(self) -> None:
        want = self._want()
        await self._cluster.signal(
            "request_lease",
            LeaseRequest(
                job_id=self._holder,
                run_id=workflow.info().run_id,
                ticket=self._ticket,
                submitted_at=want.submitted_at,
                resources=want.resources,
                batch_size=want.batch_size,
                priority=want.priority,
                node_ids=list(want.node_ids),
            ),
        )

    async def release(self) -> None:
        """Give back what is held, or take the request back."""
        epoch = self.lease.epoch if self.lease else 0
        self.lease = None
        await self._send_release(epoch)

    async def granted(self, lease: Lease) -> None:
        """The cluster gives nodes; those that nobody waits for go back."""
        is_answer = lease.run_id == workflow.info().run_id and lease.ticket == self._ticket
        if is_answer and self._waits:
            self.lease, self._waits = lease, False
            return
        await self._send_release(lease.epoch)

    def take_back(self, message: LeaseRevoked) -> None:
        """The cluster takes nodes back."""
        if self.lease is not None and self.lease.epoch == message.epoch:
            self.revoked = message

    async def _send_release(self, epoch: int) -> None:
        await self._cluster.signal(
            "release_lease",
            ReleaseRequest(job_id=self._holder, run_id=workflow.info().run_id, epoch=epoch),
        )

    @property
    def _cluster(self) -> workflow.ExternalWorkflowHandle[object]:
        return workflow.get_external_workflow_handle(CLUSTER_WORKFLOW_ID)
