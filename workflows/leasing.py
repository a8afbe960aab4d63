"""How a workflow gets nodes from the cluster, and gives them back.

Held by a workflow that has the signals `lease_granted` and `lease_revoked`, which it passes on.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.messages import Lease, LeaseRequest, LeaseRevoked, ReleaseRequest
    from loomos.jobs.names import CLUSTER_WORKFLOW_ID
    from loomos.manifest import Resources


class Leasing:
    """One lease at a time for one workflow.

    Args:
        holder: the workflow's id, by which the cluster knows it.
    """

    def __init__(self, holder: str) -> None:
        self._holder = holder
        self._ticket = 0
        self._waits = False
        self.lease: Lease | None = None
        self.revoked: LeaseRevoked | None = None

    async def acquire(self, resources: Resources, submitted_at: datetime, priority: int) -> Lease:
        """Wait for nodes, however long it takes."""
        self._ticket += 1
        self.lease, self.revoked = None, None
        self._waits = True
        try:
            await self._cluster.signal(
                "request_lease",
                LeaseRequest(
                    job_id=self._holder,
                    run_id=workflow.info().run_id,
                    ticket=self._ticket,
                    submitted_at=submitted_at,
                    resources=resources,
                    priority=priority,
                ),
            )
            await workflow.wait_condition(lambda: self.lease is not None)
        except asyncio.CancelledError:
            await self.release()
            raise
        finally:
            self._waits = False
        assert self.lease is not None
        return self.lease

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
