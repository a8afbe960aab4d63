"""The cluster: nodes that heartbeat, and gang leases over them.

One long-lived workflow. A node registers by signal; the workflow then keeps a `hold_node` activity
on that node's own queue, which heartbeats for as long as the node lives, so a healthy cluster
writes no history. Jobs ask for leases by signal and are answered by signal. Leases and requests
whose holder has vanished are found by an audit, which has a task and a clock of its own: neither a
busy cluster nor an audit that fails keeps the other waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from loomos.errors import LoomOSError
    from loomos.jobs.admission import AdmissionOpen, AuditReport, LeaseChange, LeaseDeferred
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
        Place,
        ReleaseRequest,
        SchedulerConfig,
        StatusQuery,
    )
    from loomos.jobs.message import Message
    from loomos.jobs.states import NodeState
    from loomos.nexus.advice import advise
    from loomos.nexus.allocation import Allocation
    from loomos.nexus.forecast import forecast
    from loomos.nexus.overview import Overview
    from loomos.nexus.packing import pack, unpack
    from loomos.nexus.policies import find_policy
    from loomos.nexus.usage import Waiting
    from workflows import calls
    from workflows.causes import root_cause
    from workflows.long_runs import MOST_EVENTS

AUDIT_INTERVAL = timedelta(seconds=60)
"""Time between looks for holders that are gone."""
MOST_AUDITED = 500
"""Holders that one audit looks at; the next goes on after them."""
MOST_TOLD = 50
"""Holders that are told something in one of the workflow's tasks, which must be done in 2 s."""
MOST_HELD = 50
"""Nodes that are held anew in one task."""
PAUSE = timedelta(milliseconds=1)
"""Ends a task: what follows is done in the next."""
HEARTBEAT_BUDGET = timedelta(milliseconds=50)
"""A node may be silent for so long times the number of nodes, if that is more than usual: every
heartbeat is a write to this one workflow."""
AUDITS_BESIDE = "audits-beside"
"""Patch since which audits have a task of their own and holders are told side by side."""


TOLD_IN_BATCHES = "told-in-batches"
"""Patch since which a burst of requests is taken in at once and answered bit by bit."""
REPLAYED_IN_TIME = "replayed-in-time"
"""Patch since which a run hands over before its replay lasts longer than a task may."""
MOST_WEIGHED = 400_000
"""What a run's decisions look at, nodes and requests added up over all, until it hands over. With a
thousand nodes each took 30 us to decide on again: a worker that must replay the run, for instance
because a signal came while it handed over, needs 12 s of the 30 that a task has."""
EVENTS_PER_NODE = 4
"""So many more events than other workflows a run may have for each node, until it hands over."""
MOST_HISTORY_BYTES = 16 * 2**20
"""Likewise with a history of this size."""
MOST_UNTOLD = 1000
"""Requests that were turned away and not told so yet; there may be more in a burst."""
MOST_ANSWERED = 200
"""Requests that are answered in one turn of the loop; the run may end between two turns."""


@workflow.defn(name="Cluster")
class Cluster:
    """Nodes, queue and leases."""

    @workflow.init
    def __init__(self, state: ClusterState) -> None:
        state = unpack(state)
        self._allocation = Allocation.from_state(state)
        self._overview = Overview(self._allocation)
        self._revoked: list[tuple[Lease, LeaseRevoked]] = list(state.revoked)
        self._turned_away: list[LeaseDeferred] = list(state.turned_away)
        self._audit = state.audit
        self._holds: dict[str, asyncio.Task[None]] = {}
        self._changed = True
        self._weighed = 0
        # Signals may come before `run` begins.
        self._is_batched = workflow.patched(TOLD_IN_BATCHES)

    @workflow.run
    async def run(self, state: ClusterState) -> None:
        """Serve until the history is long, then go on in a new run."""
        self._is_beside = workflow.patched(AUDITS_BESIDE)
        self._is_replayed_in_time = workflow.patched(REPLAYED_IN_TIME)
        if self._is_beside:
            self._auditing = asyncio.create_task(self._audits())
        while not self._is_long():
            self._changed = False
            self._hold_nodes()
            await self._decide()
            if self._is_beside and self._unheld():
                await workflow.sleep(PAUSE)  # the rest in a task of its own
                continue
            try:
                await workflow.wait_condition(
                    lambda: self._changed or self._is_long(),
                    timeout=None if self._is_beside else self._old_timeout(),
                )
            except TimeoutError:
                await self._audit_holders()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._is_batched:
            self._turn_away()
        for task in () if self._is_beside else tuple(self._holds.values()):
            task.cancel()  # later runs leave it to the end of the run: there may be a thousand
        carried = {
            "revoked": self._revoked,
            "turned_away": self._turned_away,
            "audit": self._audit,
        }
        state = self._allocation.to_state().model_copy(update=carried)
        workflow.continue_as_new(pack(state, workflow.now()))

    def _is_long(self) -> bool:
        """Whether this run should hand over to a new one.

        The new one holds each node anew, which costs three events: what a run may be longer for
        grows with the nodes, so that most of it is work.
        """
        info = workflow.info()
        if not self._is_batched:
            return info.is_continue_as_new_suggested()
        if self._is_replayed_in_time and self._weighed > MOST_WEIGHED:
            return True
        most = MOST_EVENTS + EVENTS_PER_NODE * len(self._allocation.nodes)
        return info.get_current_history_length() > most or (
            info.get_current_history_size() > MOST_HISTORY_BYTES
        )

    def _old_timeout(self) -> timedelta | None:
        """When runs that began before audits had their own task make the next one."""
        return AUDIT_INTERVAL if self._allocation.is_busy else None

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
        if not self._is_batched:
            self._turned_away += self._allocation.turn_away(workflow.now(), most_bytes=None)
        self._changed = True

    @workflow.signal
    def release_lease(self, release: ReleaseRequest) -> None:
        """A job gives nodes back."""
        self._allocation.release(release, workflow.now())
        self._changed = True

    @workflow.signal
    def change_lease(self, change: LeaseChange) -> None:
        """A job has another priority, whatever it waits for or holds."""
        self._allocation.change(change)
        self._changed = True

    @workflow.update
    def command_node(self, command: NodeCommand) -> ClusterStatus:
        """Cordon, uncordon, drain or remove a node; answers with the cluster after it."""
        self._revoked += self._allocation.command(command, workflow.now())
        self._changed = True
        return self._status()

    @command_node.validator
    def _check_command(self, command: NodeCommand) -> None:
        with _refusing():
            self._allocation.check(command)

    @workflow.update
    def configure(self, config: SchedulerConfig) -> ClusterStatus:
        """Decide in another way from now on; answers with the cluster after it."""
        self._allocation.configure(config)
        self._changed = True
        return self._status()

    @configure.validator
    def _check_config(self, config: SchedulerConfig) -> None:
        with _refusing():
            find_policy(config.policy)

    @workflow.query
    def status(self, query: StatusQuery | None = None) -> ClusterStatus:
        """The whole cluster, page by page."""
        return self._status(query)

    @workflow.query
    def place_of(self, job_id: str) -> Place:
        """Where a job's request is; as small as the cluster is large."""
        return self._overview.place_of(job_id, workflow.now())

    @workflow.query
    def why_never(self, request: LeaseRequest) -> str:
        """Why the ready nodes could not serve a request even if all were idle; empty if so."""
        waiting = Waiting(request, workflow.now())
        return self._allocation.round(workflow.now()).why_never(waiting) or ""

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
        for info in self._unheld()[: MOST_HELD if self._is_beside else None]:
            self._holds[info.task_queue] = asyncio.create_task(self._hold(info))

    def _unheld(self) -> list[NodeInfo]:
        """Living nodes without an activity."""
        return [
            node.info
            for node in self._allocation.nodes.values()
            if node.state != NodeState.LOST and node.info.task_queue not in self._holds
        ]

    async def _hold(self, info: NodeInfo) -> None:
        silence = max(calls.HEARTBEAT_TIMEOUT, HEARTBEAT_BUDGET * len(self._allocation.nodes))
        try:
            await calls.hold_node(info, silence)
        except ActivityError as error:
            workflow.logger.info("node %s is lost: %s", info.node_id, error.cause)
        self._holds.pop(info.task_queue, None)
        lost = self._allocation.lose(info.node_id, info.incarnation, workflow.now())
        self._revoked += lost
        self._changed = True

    async def _decide(self) -> None:
        """Send what nodes' ends and the scheduler ask back, then what is granted."""
        if self._is_batched:
            self._turn_away()
        self._weighed += len(self._allocation.nodes) + len(self._allocation.waiting)
        granted, asked_back = self._allocation.decide(workflow.now())
        if self._allocation.has_more:
            self._changed = True
        revoked, self._revoked = [*self._revoked, *asked_back], []
        most = MOST_ANSWERED if self._is_batched else len(self._turned_away)
        if self._is_batched and (granted or revoked):
            most = 0  # those that get nodes or lose them come first
        turned_away, self._turned_away = self._turned_away[:most], self._turned_away[most:]
        if not self._is_beside:
            for lease, message in revoked:
                await self._tell_holder(lease, "lease_revoked", message)
            for lease in granted:
                await self._tell_holder(lease, "lease_granted", lease)
        called: list[str] = []
        if self._is_beside:
            called = self._allocation.call(workflow.now(), most if self._is_batched else None)
        if self._is_batched and (self._turned_away or len(called) == most):
            self._changed = True
        telling: list[Callable[[], Awaitable[None]]] = []
        holder, waiting = self._tell_holder, self._tell_waiting
        if self._is_beside:
            telling += [partial(holder, lease, "lease_revoked", m) for lease, m in revoked]
            telling += [partial(holder, lease, "lease_granted", lease) for lease in granted]
        telling += [partial(waiting, m.job_id, "lease_deferred", m) for m in turned_away]
        telling += [
            partial(waiting, job_id, "admission_open", AdmissionOpen(job_id=job_id))
            for job_id in called
        ]
        for first in range(0, len(telling), MOST_TOLD):
            await asyncio.gather(*(tell() for tell in telling[first : first + MOST_TOLD]))

    def _turn_away(self) -> None:
        """Shorten the queue. In a burst not all are told; who is not asks again by itself."""
        told = [*self._turned_away, *self._allocation.turn_away(workflow.now())]
        self._turned_away = told[:MOST_UNTOLD]

    async def _tell_holder(self, lease: Lease, signal: str, message: Message) -> None:
        """Signal a lease's holder; the lease of one that is gone ends."""
        if not await self._tell(lease.job_id, lease.run_id, signal, message):
            self._take_back(lease)

    async def _tell_waiting(self, job_id: str, signal: str, message: Message) -> None:
        """Signal a job that waits for admission; one that is gone waits no more."""
        if not await self._tell(job_id, None, signal, message):
            self._allocation.forget(job_id)

    def _take_back(self, lease: Lease) -> None:
        """End the lease of a holder that is gone."""
        self._allocation.release(
            ReleaseRequest(job_id=lease.job_id, run_id=lease.run_id, epoch=lease.epoch),
            workflow.now(),
        )
        self._changed = True

    async def _tell(self, job_id: str, run_id: str | None, signal: str, message: Message) -> bool:
        """Signal a workflow; says whether it still lives."""
        holder = workflow.get_external_workflow_handle(job_id, run_id=run_id)
        try:
            await holder.signal(signal, message)
        except ApplicationError as error:
            workflow.logger.info("job %s is gone: %s", job_id, error)
            return False
        return True

    # --- audits ---

    async def _audits(self) -> None:
        """Look for holders that are gone, once a minute while there are any."""
        while True:
            if not self._allocation.is_busy:
                await workflow.wait_condition(lambda: self._allocation.is_busy)
                self._audit = self._audit.model_copy(update={"at": workflow.now()})
            due = (self._audit.at or workflow.now()) + AUDIT_INTERVAL
            if due > workflow.now():
                await workflow.sleep(due - workflow.now())
            try:
                await self._audit_holders()
            except Exception as error:  # whatever it is, leases go on being given
                workflow.logger.exception("an audit failed")
                self._note_failure(root_cause(error))
            self._changed = True

    async def _audit_holders(self) -> None:
        """Take back leases and requests of jobs that ended without a word."""
        allocation = self._allocation
        holders = {(lease.job_id, lease.run_id) for lease in allocation.leases.values()}
        if self._is_beside:
            holders |= {(w.request.job_id, w.request.run_id) for w in allocation.queue}
        asked = sorted(holders)
        if self._is_beside and len(asked) > MOST_AUDITED:
            last = self._audit.after
            following = [holder for holder in asked if last is None or tuple(last) < holder]
            asked = (following or asked)[:MOST_AUDITED]
        found = await calls.audit_leases(LeaseAudit(holders=asked), bounded=self._is_beside)
        gone = set(found.holders)
        for lease in list(allocation.leases.values()):
            if (lease.job_id, lease.run_id) in gone:
                self._take_back(lease)
        if not self._is_beside:
            return
        for job_id, run_id in sorted(gone):
            release = ReleaseRequest(job_id=job_id, run_id=run_id, epoch=0)
            allocation.release(release, workflow.now())
        self._audit = AuditReport(
            at=workflow.now(),
            looked_at=len(asked),
            gone=len(gone),
            after=asked[-1] if len(asked) == MOST_AUDITED else None,
        )

    def _note_failure(self, why: str) -> None:
        """An audit failed; the next one is due after the usual time."""
        update = {"at": workflow.now(), "failures": self._audit.failures + 1, "error": why[:500]}
        self._audit = self._audit.model_copy(update=update)

    def _status(self, query: StatusQuery | None = None) -> ClusterStatus:
        status = self._overview.status(workflow.now(), query)
        return status.model_copy(update={"audit": self._audit})


@contextmanager
def _refusing() -> Iterator[None]:
    """Refuse an update as the caller will understand it."""
    try:
        yield
    except LoomOSError as error:
        raise ApplicationError(str(error), type=type(error).__name__, non_retryable=True) from error
