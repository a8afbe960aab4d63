"""How a workflow gets nodes from the cluster, and gives them back.

Held by a workflow that has the signals `lease_granted`, `lease_revoked`, `lease_deferred` and
`admission_open`, which it passes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.admission import LeaseChange, LeaseDeferred
    from loomos.jobs.cluster import Lease, LeaseRequest, LeaseRevoked, ReleaseRequest
    from loomos.jobs.names import CLUSTER_WORKFLOW_ID

ASKS_AGAIN = "asks-again-in-time"
"""Patch since which a request is sent again after a time that nobody has answered it for."""
ASK_AGAIN = timedelta(hours=1)
PRIORITY_FOLLOWS = "priority-reaches-lease"
"""Patch since which the cluster is told when the holder of a lease changes its priority."""


class Leasing:
    """One lease at a time for one workflow.

    Args:
        holder: the workflow's id, by which the cluster knows it.
        want: what is needed, asked for each time a request is sent; who asks is filled in.
        on_wait: called with why the request waits, when the cluster has no room for it.
    """

    def __init__(
        self,
        holder: str,
        want: Callable[[], LeaseRequest],
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._holder, self._want, self._on_wait = holder, want, on_wait
        self._ticket = 0
        self._waits = False
        self._deferred: LeaseDeferred | None = None
        self._is_called = False
        self._news = 0
        self.lease: Lease | None = None
        self.revoked: LeaseRevoked | None = None

    async def acquire(self, until: Callable[[], bool] = lambda: False) -> Lease | None:
        """Wait for nodes, however long it takes; None if `until` holds before there are any."""
        self._ticket += 1
        self.lease, self.revoked = None, None
        self._waits = True
        try:
            await self._request()
            await self._until_answered(until)
        except asyncio.CancelledError:
            await self.release()
            raise
        finally:
            self._waits = False
        if self.lease is None:
            await self.release()
        return self.lease

    async def _until_answered(self, until: Callable[[], bool]) -> None:
        """Wait for a lease; ask again when called, and after a time lest a request be forgotten."""
        longest = ASK_AGAIN if workflow.patched(ASKS_AGAIN) else None
        while self.lease is None and not until():
            seen = self._news
            try:
                await workflow.wait_condition(
                    lambda seen=seen: (  # type: ignore[misc]
                        self.lease is not None or until() or self._news > seen
                    ),
                    timeout=self._deferred.retry_after if self._deferred else longest,
                    timeout_summary="asks again for nodes",
                )
            except TimeoutError:
                self._is_called = True
            if self._is_called and self.lease is None and not until():
                self._on_wait("waits for nodes")
                await self._request()

    async def ask_again(self) -> None:
        """What is needed has changed: tell the cluster, whether it has answered yet or not."""
        if self._waits:
            await self._request()
        elif self.lease is not None and workflow.patched(PRIORITY_FOLLOWS):
            await self._cluster.signal(
                "change_lease",
                LeaseChange(
                    job_id=self._holder,
                    run_id=workflow.info().run_id,
                    priority=self._want().priority,
                ),
            )

    async def _request(self) -> None:
        self._deferred, self._is_called = None, False
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

    def deferred(self, message: LeaseDeferred) -> None:
        """The cluster's queue is full: the request waits for admission."""
        is_answer = message.run_id == workflow.info().run_id and message.ticket == self._ticket
        if is_answer and self._waits:
            self._deferred = message
            self._news += 1
            self._on_wait(f"waits for admission: {message.reason}")

    def called(self) -> None:
        """The queue has room now."""
        if self._waits and self._deferred is not None:
            self._is_called = True
            self._news += 1

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
