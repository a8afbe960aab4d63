"""How a workflow gets nodes from the cluster, and gives them back.

Held by a workflow that has the signals `lease_granted` and `lease_revoked`, which it passes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.cluster import Lease, LeaseRequest, LeaseRevoked, ReleaseRequest
    from loomos.jobs.names import CLUSTER_WORKFLOW_ID


class Leasing:
    """One lease at a time for one workflow.

    Args:
        holder: the workflow's id, by which the cluster knows it.
        want: what is needed, asked for each time a request is sent; who asks is filled in.
    """

    def __init__(self, holder: str, want: Callable[[], LeaseRequest]) -> None:
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
        who = {"job_id": self._holder, "run_id": workflow.info().run_id, "ticket": self._ticket}
        await self._cluster.signal("request_lease", self._want().model_copy(update=who))

    async def release(self, workload: str = "", step_s: float | None = None) -> None:
        """Give back what is held, or take the request back.

        Args:
            workload: what ran, if it can be compared with others.
            step_s: seconds that one of its steps took.
        """
        epoch = self.lease.epoch if self.lease else 0
        self.lease = None
        await self._send_release(epoch, workload, step_s)

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

    async def _send_release(
        self, epoch: int, workload: str = "", step_s: float | None = None
    ) -> None:
        await self._cluster.signal(
            "release_lease",
            ReleaseRequest(
                job_id=self._holder,
                run_id=workflow.info().run_id,
                epoch=epoch,
                workload=workload,
                step_s=step_s,
            ),
        )

    @property
    def _cluster(self) -> workflow.ExternalWorkflowHandle[object]:
        return workflow.get_external_workflow_handle(CLUSTER_WORKFLOW_ID)
