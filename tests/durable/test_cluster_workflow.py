"""The cluster's own workflow on a real server: audits beside grants, whatever fails."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError, is_cancelled_exception
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from loomos.client.temporal import connect
from loomos.jobs.cluster import (
    ClusterState,
    ClusterStatus,
    Lease,
    LeaseAudit,
    LeaseRequest,
    LeaseRevoked,
    NodeInfo,
    ReleaseRequest,
)
from loomos.jobs.message import Empty
from loomos.jobs.training import CarriedState, ModelVersion, TrainingRunInput
from loomos.jobs.verification import VerificationInput, VerificationResult
from loomos.manifest import Resources, TrainingSpec, Verification
from loomos.nexus.packing import pack
from loomos.settings import TemporalSettings
from tests.stack import Stack
from workers.build import deployment
from workflows import cluster
from workflows.delivery import deliver
from workflows.journal import Journal


@pytest.fixture
async def temporal(stack: Stack) -> Client:
    return await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))


async def until(probe: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(60):
        while not holds(found := await probe()):
            await asyncio.sleep(0.05)
        return found


class Audits:
    """The audit, which fails until it is told not to."""

    def __init__(self) -> None:
        self.is_broken = True
        self.seen: list[str] = []

    @activity.defn(name="audit_leases")
    async def audit(self, audit: LeaseAudit) -> LeaseAudit:
        self.seen += [job_id for job_id, _ in audit.holders]
        if self.is_broken:
            raise ApplicationError("the visibility store is away", non_retryable=True)
        return LeaseAudit(holders=[h for h in audit.holders if h[0].startswith("dead")])


@activity.defn(name="hold_node")
async def hold(info: NodeInfo) -> Empty:
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.5)


def node(name: str) -> NodeInfo:
    return NodeInfo(
        node_id=name,
        incarnation=uuid.uuid4().hex[:8],
        address="127.0.0.1",
        max_ranks=1,
        cpu_count=1,
        memory_bytes=2**33,
        storage_bytes=2**33,
    )


async def test_a_busy_cluster_audits_and_an_audit_that_fails_stops_no_grant(
    temporal: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "AUDIT_INTERVAL", timedelta(seconds=0.3))
    queue, audits, info = f"audits-{uuid.uuid4().hex[:6]}", Audits(), node("n1")
    control = Worker(
        temporal,
        task_queue=queue,
        workflows=[cluster.Cluster],
        activities=[audits.audit],
        workflow_runner=UnsandboxedWorkflowRunner(),
        deployment_config=deployment(),
    )
    holder = Worker(
        temporal, task_queue=info.task_queue, activities=[hold], deployment_config=deployment()
    )
    async with control, holder:
        # What the run before had not told anybody is told by this one.
        told = await temporal.start_workflow("Holder", id=f"told-{queue}", task_queue="nobody")
        revoked = (lease_of(told.id, told.first_execution_run_id), LeaseRevoked(epoch=7, reason=""))
        handle = await temporal.start_workflow(
            "Cluster",
            pack(ClusterState(revoked=[revoked]), datetime.now(UTC)),
            id=queue,
            task_queue=queue,
            start_signal="register_node",
            start_signal_args=[info],
        )

        async def status() -> ClusterStatus:
            return await handle.query("status", result_type=ClusterStatus)

        async def ask(job_id: str, run_id: str, at: int, nodes: int = 1) -> None:
            request = LeaseRequest(
                job_id=job_id,
                run_id=run_id,
                ticket=1,
                resources=Resources(nodes=nodes),
                submitted_at=datetime.fromtimestamp(at, UTC),
            )
            await handle.signal("request_lease", request)

        jobs = [
            await temporal.start_workflow("Holder", id=f"lives{n}-{queue}", task_queue="nobody")
            for n in range(2)
        ]
        await ask(jobs[0].id, jobs[0].first_execution_run_id or "", 0)
        await until(status, lambda s: [x.job_id for x in s.leases] == [jobs[0].id])
        await ask("dead-and-first", str(uuid.uuid4()), 1)
        await ask(jobs[1].id, jobs[1].first_execution_run_id or "", 2)

        async def while_changing() -> ClusterStatus:
            await handle.signal("register_node", info)  # a change more often than an audit is due
            return await status()

        failing = await until(while_changing, lambda s: s.audit.failures >= 2)
        assert failing.audit.error == "the visibility store is away"
        await ask("dead-soon", str(uuid.uuid4()), 9)
        audits.is_broken = False
        found = await until(while_changing, lambda s: len(s.queue) == 1)
        assert [place.job_id for place in found.queue] == [jobs[1].id]
        assert {"dead-and-first", jobs[0].id, jobs[1].id} <= set(audits.seen)
        await until(while_changing, lambda s: s.audit.failures == 0)
        (held,) = found.leases
        await handle.signal(
            "release_lease",
            ReleaseRequest(job_id=held.job_id, run_id=held.run_id, epoch=held.epoch),
        )
        await until(status, lambda s: [x.job_id for x in s.leases] == [jobs[1].id])
        signals = [
            event.workflow_execution_signaled_event_attributes.signal_name
            async for event in told.fetch_history_events()
            if event.HasField("workflow_execution_signaled_event_attributes")
        ]
        assert signals == ["lease_revoked"]
        for each in (handle, told, *jobs):
            await each.terminate()


async def test_a_run_hands_over_before_its_decisions_take_long_to_replay(
    temporal: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is a decision that looks at one node; ten of them are a run."""
    monkeypatch.setattr(cluster, "MOST_WEIGHED", 10)
    queue, info = f"brief-{uuid.uuid4().hex[:6]}", node("n2")
    control = Worker(
        temporal,
        task_queue=queue,
        workflows=[cluster.Cluster],
        activities=[Audits().audit],
        workflow_runner=UnsandboxedWorkflowRunner(),
        deployment_config=deployment(),
    )
    holder = Worker(
        temporal, task_queue=info.task_queue, activities=[hold], deployment_config=deployment()
    )
    async with control, holder:
        handle = await temporal.start_workflow(
            "Cluster",
            pack(ClusterState(), datetime.now(UTC)),
            id=queue,
            task_queue=queue,
            start_signal="register_node",
            start_signal_args=[info],
        )

        async def status() -> ClusterStatus:
            await handle.signal("register_node", info)
            return await handle.query("status", result_type=ClusterStatus)

        async def run_id() -> str | None:
            await status()
            return (await handle.describe()).run_id

        for _ in range(3):
            before = (await handle.describe()).run_id
            await until(run_id, lambda now, before=before: now != before)
        found = await until(status, lambda s: len(s.nodes) == 1)
        assert found.nodes[0].info.node_id == "n2"
        ended = temporal.get_workflow_handle(queue, run_id=handle.first_execution_run_id)
        description = await ended.describe()
        assert description.history_length < 200  # by events it would go on
        await handle.terminate()


def lease_of(job_id: str, run_id: str | None) -> Lease:
    return Lease(epoch=7, job_id=job_id, run_id=run_id or "", ticket=1, nodes=[], ranks_per_node=1)


@workflow.defn(name="VerificationSuite")
class Verifying:
    """A verification without an end."""

    @workflow.run
    async def run(self, job: VerificationInput) -> VerificationResult:
        await workflow.wait_condition(lambda: False)
        raise AssertionError


@workflow.defn(name="Delivering")
class Delivering:
    """What follows a training, and nothing else."""

    @workflow.run
    async def run(self, job: TrainingRunInput) -> str:
        model = ModelVersion(
            name="m", version="1", key_prefix="", size_bytes=0, weights_sha256="0" * 64
        )
        return (await deliver(job, model, Journal(CarriedState(), lambda: []))).said


async def test_a_job_that_is_cancelled_while_it_is_verified_is_cancelled(temporal: Client) -> None:
    queue = f"delivering-{uuid.uuid4().hex[:6]}"
    noop = TrainingSpec.model_validate({"algorithm": "noop"})
    worker = Worker(
        temporal,
        task_queue=queue,
        workflows=[Delivering, Verifying],
        workflow_runner=UnsandboxedWorkflowRunner(),
        deployment_config=deployment(),
    )
    verify = Verification()
    job = TrainingRunInput(
        job_id=queue, name="n", owner="o", spec=noop.model_copy(update={"verify": verify})
    )
    async with worker:
        for is_own in (True, False):
            handle = await temporal.start_workflow("Delivering", job, id=queue, task_queue=queue)

            async def children(handle: Any = handle) -> list[Any]:
                description = await handle.describe()
                return list(description.raw_description.pending_children)

            (pending,) = await until(children, lambda found: bool(found) and found[0].run_id)
            child = temporal.get_workflow_handle(pending.workflow_id)
            await (handle if is_own else child).cancel()
            if is_own:
                with pytest.raises(WorkflowFailureError) as failed:
                    await handle.result()
                assert is_cancelled_exception(failed.value.cause)
            else:
                assert "not verified" in await handle.result()
