"""Many jobs with dependencies while processes die: each ends as it should, no node held twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.jobs.cluster import Lease, NodeInfo, ReleaseRequest
from loomos.jobs.names import CLUSTER_WORKFLOW_ID
from loomos.jobs.states import JobState
from loomos.settings import TemporalSettings
from tests.durable.test_jobs import one_node
from tests.stack import Stack, manifest, running_stack

MEMBERS = ["node-1", "node-2", "control", "gateway", "ledger", "temporal"]


@dataclass
class Planned:
    """A job, what it waits for, and how it must end."""

    name: str
    document: dict[str, Any]
    needs: list[tuple[str, str]] = field(default_factory=list)
    ends: JobState = JobState.COMPLETED


def plan(rng: random.Random, count: int) -> list[Planned]:
    """A random DAG: short trainings, probes, and some that cannot work."""
    made: list[Planned] = []
    for number in range(count):
        name = f"many-{number:02}"
        kind = rng.choices(["train", "probe", "broken"], [6, 3, 1])[0]
        document = one_node(name, steps=rng.randint(2, 12))
        document["spec"]["priority"] = rng.randint(1, 5)
        document["metadata"]["project"] = rng.choice(["p", "q"])
        if kind == "probe":
            document["spec"] = {"algorithm": "noop"}
        if kind == "broken":
            document["spec"]["model"]["config"]["hidden_size"] = 63
        parents = rng.sample(made, min(len(made), rng.choice([0, 0, 1, 1, 2])))
        needs = [(parent.name, rng.choice(["fail", "fail", "run"])) for parent in parents]
        fails = kind == "broken" or any(
            parent.ends == JobState.FAILED and policy == "fail"
            for parent, (_, policy) in zip(parents, needs, strict=True)
        )
        ends = JobState.FAILED if fails else JobState.COMPLETED
        made.append(Planned(name, document, needs, ends))
    return made


async def kill_at_random(stack: Stack, rng: random.Random, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s * rng.uniform(0.5, 1.5))
        with contextlib.suppress(Exception):  # it may be down already
            stack.kill(rng.choice(MEMBERS))


async def double_bookings(client: Client, max_ranks: int) -> tuple[int, list[str]]:
    """Read the cluster's history: how many leases there were, and every node held twice."""
    held: dict[int, Lease] = {}
    wrong: list[str] = []
    granted: set[int] = set()
    nodes: dict[int, str] = {}
    handle = client.get_workflow_handle(CLUSTER_WORKFLOW_ID)
    async for event in handle.fetch_history_events():
        for lease in await _leases(client, event):
            granted.add(lease.epoch)
            held[lease.epoch] = lease
            used = Counter(n.node_id for each in held.values() for n in each.nodes)
            wrong += [f"{n} in {lease.epoch}" for n, count in used.items() if count > max_ranks]
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            signal = event.workflow_execution_signaled_event_attributes
            payloads = list(signal.input.payloads)
            if signal.signal_name == "release_lease":
                (release,) = await client.data_converter.decode(payloads, [ReleaseRequest])
                held.pop(release.epoch, None)
            if signal.signal_name == "register_node":
                (info,) = await client.data_converter.decode(payloads, [NodeInfo])
                _drop(held, lambda node, info=info: _is_older(node, info))
        started = event.activity_task_scheduled_event_attributes
        if started.activity_type.name == "hold_node":
            nodes[event.event_id] = started.task_queue.name
        ended = (
            event.activity_task_timed_out_event_attributes.scheduled_event_id
            or event.activity_task_completed_event_attributes.scheduled_event_id
            or event.activity_task_failed_event_attributes.scheduled_event_id
        )
        if queue := nodes.pop(ended, None):  # the node is lost, and its leases with it
            _drop(held, lambda node, queue=queue: node.task_queue == queue)
    return len(granted), wrong


def _drop(held: dict[int, Lease], is_gone: Callable[[NodeInfo], bool]) -> None:
    """A lease ends with any of its nodes."""
    for epoch, lease in list(held.items()):
        if any(map(is_gone, lease.nodes)):
            del held[epoch]


def _is_older(node: NodeInfo, now: NodeInfo) -> bool:
    return node.node_id == now.node_id and node.incarnation != now.incarnation


async def _leases(client: Client, event: HistoryEvent) -> list[Lease]:
    attributes = event.signal_external_workflow_execution_initiated_event_attributes
    if attributes.signal_name != "lease_granted":
        return []
    return await client.data_converter.decode(list(attributes.input.payloads), [Lease])


@pytest.mark.parametrize(
    ("count", "every_s"),
    [pytest.param(12, 8.0), pytest.param(50, 7.0)],
)
@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.timeout(1500)
async def test_jobs_end_as_they_should_whatever_is_killed(
    tmp_path_factory: pytest.TempPathFactory, count: int, every_s: float
) -> None:
    rng = random.Random(count)
    planned = plan(rng, count)
    with running_stack(tmp_path_factory.mktemp("many")) as stack:
        async with stack.client() as client:
            ids: dict[str, str] = {}
            killing = asyncio.create_task(kill_at_random(stack, rng, every_s))
            for job in planned:
                job.document["spec"]["depends_on"] = [
                    {"job": ids[name], "on_failure": policy} for name, policy in job.needs
                ]
                ids[job.name] = await _submit(stack, client, job.document)
            ends = await stack.eventually(
                lambda: _states(client, list(ids.values())),
                lambda found: all(state.is_final for state in found.values()),
                within_s=1200,
                every_s=1,
            )
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
            assert {job.name: ends[ids[job.name]] for job in planned} == {
                job.name: job.ends for job in planned
            }
            status = await stack.eventually(
                client.get_cluster_status, lambda s: not s.leases and not s.queue, 150
            )
            assert all(node.ranks_used == 0 for node in status.nodes)
            temporal = await connect(
                TemporalSettings.model_validate(stack.state.settings["temporal"])
            )
            leases, wrong = await double_bookings(temporal, status.nodes[0].info.max_ranks)
            _, seen = await double_bookings(temporal, max_ranks=0)
        trained = sum("model" in job.document["spec"] for job in planned)
        assert leases >= trained / 2
        assert wrong == []
        assert len(seen) >= leases  # the checker sees what is held


async def _submit(stack: Stack, client: LoomOSClient, document: dict[str, Any]) -> str:
    """Submit, once, though the gateway or Temporal may be down for a moment."""

    async def sent() -> str:

        name = document["metadata"]["name"]
        made = await client.submit_job_from_manifest(manifest(document), idempotency_key=name)
        return made.job_id

    return await stack.eventually(sent, bool)


async def _states(client: LoomOSClient, job_ids: list[str]) -> dict[str, JobState]:
    found = await asyncio.gather(*(client.get_job_status(job_id) for job_id in job_ids))
    return {job.job_id: job.state for job in found}
