"""Leader election for programs, on a durable workflow with fencing terms.

Temporal itself is the replicated, consistent log: an election is an entry in the `Leadership`
workflow's history, so no quorum of these processes is needed, and one of them is enough to have a
leader. What this adds to Temporal is a leader among *your* processes, told in time that it leads or
no longer does, and a term that makes the writes of a deposed one refusable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig, WorkerDeploymentVersion

from loomos.client.answers import answered
from loomos.client.temporal import connect
from loomos.errors import Conflict, InvalidInput, LoomOSError, NotFound
from loomos.jobs.leadership import Candidate, ElectionInput, LeadershipStatus, Tenure
from loomos.jobs.message import Empty
from loomos.jobs.names import CONTROL_QUEUE, leadership_workflow_id
from loomos.nexus.failover.fence import Fence, Written
from loomos.settings import Settings, load_settings
from loomos.storage import open_store

log = logging.getLogger(__name__)


class NodeRole(StrEnum):
    """What a node is in its group."""

    FOLLOWER = "follower"
    """Another may lead."""
    LEADER = "leader"
    """It leads, as far as it knows."""


RoleHandler = Callable[[NodeRole, NodeRole], Awaitable[None]]


class ConsensusManager:
    """One process of a group of which at most one leads.

    Args:
        node_id: this process.
        cluster_nodes: every process that may lead, this one included; the same in all of them.
        election_timeout_ms: silence after which a leader is deposed.
        heartbeat_interval_ms: time between a leader's heartbeats.
        group: name of the group.
        settings: where Temporal and the store are. Default: from the environment.

    Raises:
        InvalidInput: an argument makes no sense.

    Example:
        >>> consensus = ConsensusManager("node_1", ["node_1", "node_2"])  # doctest: +SKIP
        >>> await consensus.start()  # doctest: +SKIP
    """

    def __init__(
        self,
        node_id: str,
        cluster_nodes: Sequence[str],
        election_timeout_ms: int = 5000,
        heartbeat_interval_ms: int = 1000,
        *,
        group: str = "master",
        settings: Settings | None = None,
    ) -> None:
        if node_id not in cluster_nodes:
            raise InvalidInput(f"cluster_nodes: {node_id!r} is not among them; add it")
        if not 0 < 2 * heartbeat_interval_ms <= election_timeout_ms:
            raise InvalidInput(
                f"heartbeat_interval_ms ({heartbeat_interval_ms}) must be at most half of "
                f"election_timeout_ms ({election_timeout_ms}), so that one may be lost"
            )
        self.node_id, self.group = node_id, group
        self._members = list(cluster_nodes)
        self._timeout_s = election_timeout_ms / 1000
        self._interval_s = heartbeat_interval_ms / 1000
        self._settings = settings
        self._me = Candidate(node_id=node_id, incarnation=uuid.uuid4().hex[:8])
        self._handlers: list[RoleHandler] = []
        self._changes: asyncio.Queue[tuple[NodeRole, NodeRole]] = asyncio.Queue()
        self._beat_at = 0.0
        self._role = NodeRole.FOLLOWER
        self._tasks: list[asyncio.Task[Any]] = []
        self._client: Client | None = None
        self.term = 0
        """The newest term in which this node led."""

    async def __aenter__(self) -> ConsensusManager:
        await self.start()
        return self

    async def __aexit__(self, *exit: object) -> None:
        await self.stop()

    @property
    def role(self) -> NodeRole:
        """What this node is. One that has not heartbeated in time knows that it may be deposed."""
        is_late = time.monotonic() - self._beat_at > self._timeout_s
        return NodeRole.FOLLOWER if is_late else self._role

    def on_role_change(self, handler: RoleHandler) -> RoleHandler:
        """Have an async function called with (old role, new role), one change at a time."""
        self._handlers.append(handler)
        return handler

    async def start(self) -> None:
        """Stand for election, now and until `stop`.

        Raises:
            Unavailable: Temporal does not answer.
        """
        settings = self._settings or load_settings()
        self._fence = Fence(open_store(settings.storage), self.group)
        self._client = await connect(settings.temporal)
        beat = timedelta(seconds=self._interval_s / 2)
        worker = Worker(
            self._client,
            task_queue=self._me.task_queue,
            activities=[self.lead],
            max_heartbeat_throttle_interval=beat,
            default_heartbeat_throttle_interval=beat,
            graceful_shutdown_timeout=timedelta(0),
            deployment_config=WorkerDeploymentConfig(
                version=WorkerDeploymentVersion("loomos-consensus", "1"),
                use_worker_versioning=False,
            ),
        )
        self._worker = worker
        self._tasks = [
            asyncio.create_task(worker.run()),
            asyncio.create_task(self._keep_standing()),
            asyncio.create_task(self._tell()),
        ]

    async def stop(self) -> None:
        """Leave: a leader steps down first, and its handlers are told."""
        if self._client is None:
            return
        running, standing, telling = self._tasks
        standing.cancel()
        with contextlib.suppress(RPCError):
            await self._election.signal("withdraw", self._me)
        await self._worker.shutdown()
        await running
        await self._changes.join()
        telling.cancel()
        await asyncio.gather(standing, telling, return_exceptions=True)
        self._client, self._tasks = None, []

    async def status(self) -> LeadershipStatus:
        """Who leads, by the workflow's account."""
        return await answered(self._election.query("status", result_type=LeadershipStatus))

    async def trigger_election(self) -> LeadershipStatus:
        """Have the leader step down, for maintenance; returns when the next has been chosen.

        An election that is under way, as after `start`, is waited for: whoever wins it steps down.

        Raises:
            Conflict: nobody leads, and nobody comes to lead within three election time-outs.
        """
        deadline = time.monotonic() + 3 * self._timeout_s
        while True:
            try:
                return await answered(
                    self._election.execute_update("trigger_election", result_type=LeadershipStatus)
                )
            except (Conflict, NotFound) as error:
                if self._client is None or time.monotonic() > deadline:
                    raise Conflict(f"{self.group}: {error}") from None
            await asyncio.sleep(self._interval_s / 4)

    async def write(self, content: Any) -> Written:
        """Write the group's value as its leader.

        Raises:
            Conflict: this node does not lead, or no longer.
        """
        if not self.term:
            raise Conflict(f"{self.node_id} has never led {self.group}")
        # Whether it leads is for the fence to say: what a node believes may be a moment old.
        return await asyncio.to_thread(self._fence.write, self.term, self.node_id, content)

    async def read(self) -> Written | None:
        """What the last leader wrote."""
        return await asyncio.to_thread(self._fence.read)

    # --- inside ---

    @property
    def _election(self) -> WorkflowHandle[Any, Any]:
        if self._client is None:
            raise Conflict("not started; call start() first")
        return self._client.get_workflow_handle(leadership_workflow_id(self.group))

    @activity.defn(name="lead")
    async def lead(self, tenure: Tenure) -> Empty:
        """Lead until told otherwise. Heartbeats; closes the door behind older terms first."""
        await asyncio.to_thread(self._fence.enter, tenure.term, self.node_id)
        self.term = tenure.term
        self._beat_at = time.monotonic()
        self._change(NodeRole.LEADER)
        try:
            while True:
                late_s = time.monotonic() - self._beat_at
                if late_s > self._timeout_s:
                    raise Conflict(f"no heartbeat for {late_s:.1f} s; deposed by now")
                activity.heartbeat()
                self._beat_at = time.monotonic()
                await asyncio.sleep(self._interval_s)
        finally:
            self._change(NodeRole.FOLLOWER)

    def _change(self, role: NodeRole) -> None:
        if role != self._role:
            self._changes.put_nowait((self._role, role))
            self._role = role

    async def _tell(self) -> None:
        """Call the handlers, one change after the other."""
        while True:
            old, new = await self._changes.get()
            try:
                for handler in self._handlers:
                    await handler(old, new)
            except Exception:
                log.exception("a handler of %s failed on %s -> %s", self.node_id, old, new)
            finally:
                self._changes.task_done()

    async def _keep_standing(self) -> None:
        """Be a candidate, and again after having been dropped for silence."""
        assert self._client is not None
        while True:
            try:
                if self._role != NodeRole.LEADER:
                    await self._client.start_workflow(
                        "Leadership",
                        ElectionInput(
                            group=self.group,
                            members=self._members,
                            timeout=timedelta(seconds=self._timeout_s),
                        ),
                        id=leadership_workflow_id(self.group),
                        task_queue=CONTROL_QUEUE,
                        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                        start_signal="stand",
                        start_signal_args=[self._me],
                        task_timeout=timedelta(seconds=5),
                        static_summary=f"who leads {self.group}",
                    )
                    await self._until_dropped()
            except (RPCError, LoomOSError) as error:
                log.warning("%s cannot stand for election: %s", self.node_id, error)
            await asyncio.sleep(self._timeout_s / 2)

    async def _until_dropped(self) -> None:
        """Look now and then whether the election still knows this candidate."""
        while self._me in (await self.status()).candidates:  # noqa: ASYNC110
            await asyncio.sleep(self._timeout_s / 2)
