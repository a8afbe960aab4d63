"""Which broken attempts count: the real workflow, with ranks that break as they are told."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from loomos.client.temporal import connect
from loomos.jobs.cluster import Lease, NodeInfo
from loomos.jobs.facts import RecordCheckpoints, RecordFacts
from loomos.jobs.message import Empty
from loomos.jobs.states import JobState
from loomos.jobs.training import (
    AttemptPlan,
    JobStatus,
    OpenAttempt,
    Reference,
    ResolvedInputs,
    TrainAssignment,
    TrainingRunInput,
    TrainOutcome,
)
from loomos.manifest import TrainingSpec
from loomos.settings import TemporalSettings
from tests.stack import Stack, tiny_job
from workers.build import deployment
from workflows.training import TrainingRun

MOST_NODES = 40
"""More than the stack has, so that only the test gives nodes."""


class World:
    """What a run touches; its ranks raise these errors, one an attempt."""

    def __init__(self, errors: list[str]) -> None:
        self._errors: Iterator[str] = iter(errors)
        self._generation = 0
        self.facts: list[str] = []

    @activity.defn(name="resolve_inputs")
    async def resolve(self, spec: TrainingSpec) -> ResolvedInputs:
        nothing = Reference(uri="init:llama", sha256="0" * 64)
        return ResolvedInputs(model=nothing, training=nothing, code="test")

    @activity.defn(name="open_attempt")
    async def open_attempt(self, request: OpenAttempt) -> AttemptPlan:
        self._generation += 1
        return AttemptPlan(generation=self._generation)

    @activity.defn(name="train")
    async def train(self, job: TrainAssignment) -> TrainOutcome:
        kind = next(self._errors)
        raise ApplicationError(f"rank 0: {kind}: as told", type=kind)

    @activity.defn(name="record_facts")
    async def record(self, request: RecordFacts) -> Empty:
        self.facts += [fact.event_type for fact in request.facts]
        return Empty()

    @activity.defn(name="record_checkpoints")
    async def checkpoints(self, request: RecordCheckpoints) -> Empty:
        return Empty()


@pytest.fixture
async def temporal(stack: Stack) -> Client:
    return await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))


def node(name: str) -> NodeInfo:
    return NodeInfo(
        node_id=name,
        incarnation="test",
        address="127.0.0.1",
        max_ranks=1,
        cpu_count=1,
        memory_bytes=2**30,
        storage_bytes=2**30,
    )


async def give_nodes(run: WorkflowHandle[object, object], given: NodeInfo) -> None:
    """Answer each request of a run for nodes, as the cluster would, until it has ended."""
    ticket = 0
    while True:
        status: JobStatus = await run.query("status", result_type=JobStatus)
        if status.state.is_final:
            return
        if status.message == "waits for nodes" and len(status.attempts) == ticket:
            ticket += 1
            lease = Lease(
                epoch=ticket,
                job_id=run.id,
                run_id=run.result_run_id or "",
                ticket=ticket,
                nodes=[given],
                ranks_per_node=1,
            )
            await run.signal("lease_granted", lease)
        await asyncio.sleep(0.05)


async def ended(client: Client, errors: list[str]) -> tuple[JobStatus, str, World]:
    """Where a run is that has failed, and why."""
    queue = f"attempts-{uuid.uuid4().hex[:6]}"
    spec = tiny_job("told")["spec"]
    spec["resources"] = {"nodes": MOST_NODES}
    spec["model"]["fine_tuning_config"]["batch_size"] = MOST_NODES
    spec["runtime"] = {"retries": {"max_attempts": 3, "backoff": "10ms"}}
    world = World(errors)
    given = node(queue)
    control = Worker(
        client,
        task_queue=queue,
        workflows=[TrainingRun],
        activities=[world.resolve, world.open_attempt, world.record, world.checkpoints],
        workflow_runner=UnsandboxedWorkflowRunner(),
        deployment_config=deployment(),
    )
    ranks = Worker(client, task_queue=given.task_queue, activities=[world.train])
    job = TrainingRunInput(
        job_id=queue, name="told", owner="o", spec=TrainingSpec.model_validate(spec)
    )
    async with control, ranks:
        run = await client.start_workflow("TrainingRun", job, id=queue, task_queue=queue)
        await give_nodes(run, given)
        with pytest.raises(WorkflowFailureError) as failed:
            await run.result()
        status: JobStatus = await run.query("status", result_type=JobStatus)
        return status, str(failed.value.cause), world


async def test_an_outage_of_the_store_counts_for_nothing_and_the_same_error_ends_the_job(
    temporal: Client,
) -> None:
    errors = ["Unavailable"] * 4 + ["KeyError", "ValueError", "ValueError"]
    status, why, world = await ended(temporal, errors)
    assert status.state == JobState.FAILED
    assert len(status.attempts) == world.facts.count("lease_granted") == len(errors)
    assert "the same error twice at step 0" in why and "ValueError: as told" in why
    assert world.facts[-1] == "job_ended"


async def test_errors_that_differ_use_up_the_attempts(temporal: Client) -> None:
    status, why, _ = await ended(temporal, ["KeyError", "ValueError", "OSError"])
    assert len(status.attempts) == 3
    assert "3 attempts in a row failed without a new checkpoint; the last: " in why
