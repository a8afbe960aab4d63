"""kill -9 of every process in every phase: the run completes, bit for bit as if undisturbed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from loomos.client.http import LoomOSClient
from loomos.client.models import JobDetail
from loomos.jobs.states import JobState
from loomos.storage.layout import checkpoints_prefix, parse_checkpoint_manifest
from tests.stack import Stack, manifest, tiny_job

VICTIMS = ("rank", "node-2", "control", "gateway", "temporal", "s3", "everything")
PHASES = ("queued", "starting", "mid-step", "mid-checkpoint", "publishing")

IN_EVERY_RUN = {("rank", "mid-step")}
"""Cells of `make test`; the others run in `make test-all`."""


def drill_job(name: str) -> dict[str, Any]:
    job = tiny_job(name, max_steps=60, sequence_length=256, batch_size=16)
    job["spec"]["runtime"]["checkpoint_steps"] = 12
    return job


@pytest.fixture(scope="module")
async def undisturbed(stack: Stack) -> str:
    """Digest of the weights of a run that nobody touched."""
    async with stack.client() as client:
        job = await client.submit_job_from_manifest(manifest(drill_job("undisturbed")))
        done = await stack.until(client, job.job_id, JobState.COMPLETED)
        assert done.published is not None
        return done.published.weights_sha256


def cells() -> list[Any]:
    return [
        pytest.param(
            victim,
            phase,
            marks=() if (victim, phase) in IN_EVERY_RUN else pytest.mark.slow,
            id=f"{victim} {phase}",
        )
        for phase in PHASES
        for victim in VICTIMS
    ]


@pytest.mark.parametrize(("victim", "phase"), cells())
async def test_a_killed_process_changes_nothing(
    stack: Stack, client: LoomOSClient, undisturbed: str, victim: str, phase: str
) -> None:
    name = f"drill-{victim}-{phase}"
    if phase == "queued":
        await cordon_all(stack, client)
    job = await client.submit_job_from_manifest(manifest(drill_job(name)))
    await reach(stack, client, job.job_id, phase)
    stack.kill(victim)
    if victim == "everything":
        stack.up()
    if phase == "queued":
        await uncordon_all(stack, client)

    done = await stack.until(client, job.job_id, JobState.COMPLETED, JobState.FAILED, within_s=180)

    assert done.state == JobState.COMPLETED, done.message
    assert done.published is not None
    assert done.published.weights_sha256 == undisturbed
    assert stack.store().children(f"models/{name}/") == [f"{done.published.version}/"]
    await nothing_hosted(stack)


async def reach(stack: Stack, client: LoomOSClient, job_id: str, phase: str) -> None:
    """Return at the moment at which the job is in this phase."""

    async def status() -> JobDetail:
        return await client.get_job_status(job_id)

    if phase == "mid-checkpoint":
        await until_half_written(stack, job_id)
        return
    conditions = {
        "queued": lambda job: job.message == "waits for nodes",
        "starting": lambda job: job.state == JobState.STARTING,
        "mid-step": lambda job: job.training is not None and job.training.step >= 30,
        "publishing": lambda job: job.state == JobState.PUBLISHING,
    }
    await stack.eventually(status, conditions[phase])


async def until_half_written(stack: Stack, job_id: str) -> None:
    """Wait for a checkpoint, not the first, that has shards but no manifest yet."""
    store = stack.store()
    async with asyncio.timeout(90):
        while True:
            keys = [item.key for item in store.objects(checkpoints_prefix(job_id))]
            committed = {k.rpartition("/")[0] for k in keys if parse_checkpoint_manifest(k)}
            begun = {k.rpartition("/")[0] for k in keys if k.endswith(".distcp")}
            if committed and begun - committed:
                return
            await asyncio.sleep(0)


async def cordon_all(stack: Stack, client: LoomOSClient) -> None:
    for node in ("node-1", "node-2"):
        await stack.eventually(lambda node=node: client.cordon_worker(node), lambda _: True)


async def uncordon_all(stack: Stack, client: LoomOSClient) -> None:
    for node in ("node-1", "node-2"):
        await stack.eventually(
            lambda node=node: client.uncordon_worker(node), lambda worker: worker.state == "ready"
        )


async def nothing_hosted(stack: Stack) -> None:
    """No rank, agent or export process is left on any node."""

    async def hosted() -> list[str]:
        return [str(p) for name in ("node-1", "node-2") for p in stack.hosted(name)]

    await stack.eventually(hosted, lambda found: not found, within_s=20)
