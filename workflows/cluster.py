"""The cluster: nodes that heartbeat, and gang leases over them.

One long-lived workflow. A node registers by signal; the workflow then keeps a `hold_node` activity
on that node's own queue, which heartbeats for as long as the node lives, so a healthy cluster
writes no history. Jobs ask for leases by signal and are answered by signal. Leases whose holder
has vanished are found by a periodic audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from loomos.errors import LoomOSError
    from loomos.jobs.cluster import (
        AdviceList,
        ClusterState,
        ClusterStatus,
        Forecast,
        Lease,
        LeaseAudit,
        LeaseRequest,
        LeaseRevoked,
        NodeCommand,
        NodeInfo,
        ReleaseRequest,
        SchedulerConfig,
    )
    from loomos.jobs.states import NodeState
    from loomos.nexus.advice import advise
    from loomos.nexus.allocation import Allocation
    from loomos.nexus.forecast import forecast
    from loomos.nexus.policies import find_policy
    from workflows import calls

AUDIT_INTERVAL = timedelta(seconds=60)
"""Time between looks for leases whose holder is gone."""


@workflow.defn(name="Cluster")
class Cluster:
    """Nodes, queue and leases."""

    @workflow.init
    def __init__(self, state: ClusterState) -> None:
        self._allocation = Allocation.from_state(state)
        self._revoked: list[tuple[Lease, LeaseRevoked]] = []
        self._holds: dict[str, asyncio.Task[None]] = {}
        self._changed = True

    @workflow.run
    async def run(self, state: ClusterState) -> None:
        """Serve until the history is long, then go on in a new run."""
        while not workflow.info().is_continue_as_new_suggested():
            self._changed = False
            self._hold_nodes()
            await self._decide()
            try:
                await workflow.wait_condition(
                    lambda: self._changed or workflow.info().is_continue_as_new_suggested(),
                    timeout=AUDIT_INTERVAL if self._allocation.is_busy else None,
                )
            except TimeoutError:
                await self._audit()
        await workflow.wait_condition(workflow.all_handlers_finished)
        for hold in self._holds.values():
            hold.cancel()
        workflow.continue_as_new(self._allocation.to_state())

    # --- messages ---

    @workflow.signal
    def register_node(self, info: NodeInfo) -> None:
        """A node says hello; saying it again is harmless."""
        self._revoked += self._allocation.register(info, workflow.now())
        self._changed = True

    @workflow.signal
    def request_lease(self, request: LeaseRequest) -> None:
        """A job asks for nodes."""
        self._allocation.request(request, workflow.now())
        self._changed = True

    @workflow.signal
    def release_lease(self, release: ReleaseRequest) -> None:
        """A job gives nodes back."""
        self._allocation.release(release, workflow.now())
        self._changed = True

    @workflow.update
    def command_node(self, command: NodeCommand) -> ClusterStatus:
        """Cordon, uncordon, drain or remove a node; answers with the cluster after it."""
        self._revoked += self._allocation.command(command, workflow.now())
        self._changed = True
        return self._allocation.status(workflow.now())

    @command_node.validator
    def _check_command(self, command: NodeCommand) -> None:
        with _refusing():
            self._allocation.check(command)

    @workflow.update
    def configure(self, config: SchedulerConfig) -> ClusterStatus:
        """Decide in another way from now on; answers with the cluster after it."""
        self._allocation.configure(config)
        self._changed = True
        return self._allocation.status(workflow.now())

    @configure.validator
    def _check_config(self, config: SchedulerConfig) -> None:
        with _refusing():
            find_policy(config.policy)

    @workflow.query
    def status(self) -> ClusterStatus:
        """The whole cluster."""
        return self._allocation.status(workflow.now())

    @workflow.query
    def forecast(self, request: LeaseRequest) -> Forecast:
        """When a request would be served, if everything takes as long as estimated."""
        return forecast(self._allocation, request, workflow.now())

    @workflow.query
    def advice(self) -> AdviceList:
        """What could be asked for differently."""
        return AdviceList(advice=advise(self._allocation, workflow.now()))

    # --- what the loop does ---

    def _hold_nodes(self) -> None:
        """Keep one `hold_node` activity per living node."""
        for node in self._allocation.nodes.values():
            queue = node.info.task_queue
            if node.state != NodeState.LOST and queue not in self._holds:
                self._holds[queue] = asyncio.create_task(self._hold(node.info))

    async def _hold(self, info: NodeInfo) -> None:
        try:
            await calls.hold_node(info)
        except ActivityError as error:
            workflow.logger.info("node %s is lost: %s", info.node_id, error.cause)
        self._holds.pop(info.task_queue, None)
        lost = self._allocation.lose(info.node_id, info.incarnation, workflow.now())
        self._revoked += lost
        self._changed = True

    async def _decide(self) -> None:
        """Send what nodes' ends and the scheduler ask back, then what is granted."""
        granted, asked_back = self._allocation.decide(workflow.now())
        revoked, self._revoked = [*self._revoked, *asked_back], []
        for lease, message in revoked:
            if not await self._tell(lease, "lease_revoked", message):
                self._take_back(lease)
        for lease in granted:
            if not await self._tell(lease, "lease_granted", lease):
                self._take_back(lease)

    def _take_back(self, lease: Lease) -> None:
        """End the lease of a holder that is gone."""
        self._allocation.release(
            ReleaseRequest(job_id=lease.job_id, run_id=lease.run_id, epoch=lease.epoch),
            workflow.now(),
        )
        self._changed = True

    async def _tell(self, lease: Lease, signal: str, message: Lease | LeaseRevoked) -> bool:
        """Signal a lease's holder; says whether it still lives."""
        holder = workflow.get_external_workflow_handle(lease.job_id, run_id=lease.run_id)
        try:
            await holder.signal(signal, message)
        except ApplicationError as error:
            workflow.logger.info("job %s is gone: %s", lease.job_id, error)
            return False
        return True

    async def _audit(self) -> None:
        """Take back leases and requests of jobs that ended without a word."""
        holders = {(lease.job_id, lease.run_id) for lease in self._allocation.leases.values()}
        gone = await calls.audit_leases(LeaseAudit(holders=sorted(holders)))
        for lease in list(self._allocation.leases.values()):
            if (lease.job_id, lease.run_id) in set(gone.holders):
                self._take_back(lease)


@contextmanager
def _refusing() -> Iterator[None]:
    """Refuse an update as the caller will understand it."""
    try:
        yield
    except LoomOSError as error:
        raise ApplicationError(str(error), type=type(error).__name__, non_retryable=True) from error
