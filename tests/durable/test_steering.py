"""What is asked of a job: told, done, refused with a reason, and in force where it decides."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator

import pytest

from loomos.client.http import LoomOSClient
from loomos.errors import Conflict
from loomos.jobs.cluster import SchedulerConfig
from loomos.jobs.states import JobState
from tests.durable.test_jobs import one_node, submit, until_step
from tests.stack import Stack, manifest, tiny_job


@pytest.fixture
async def rules(client: LoomOSClient) -> AsyncIterator[SchedulerConfig]:
    """The rules as they are, and again after the test."""
    before = await client.scheduler.config()
    yield before
    await client.scheduler.configure(before)


async def test_a_running_job_is_steered_and_others_wait_for_admission(
    stack: Stack, client: LoomOSClient, rules: SchedulerConfig
) -> None:
    both = await submit(client, tiny_job("both", max_steps=4000))
    await until_step(stack, client, both, 5)

    with pytest.raises(Conflict, match="it needs at least 2 nodes and 1 is named"):
        await client.migrate_job(both, ["node-1"])
    await client.change_job(both, priority=1)
    (lease,) = (
        await stack.eventually(
            client.get_cluster_status,
            lambda s: [x.request.priority for x in s.leases if x.request] == [1],
        )
    ).leases
    assert lease.job_id == both
    shown = stack.loomos("scheduler", "status").stdout
    assert "2 of 2 ready ones in use" in " ".join(shown.split())

    # The queue takes one request; the second waits for admission, and loses nothing.
    await client.scheduler.configure(rules.model_copy(update={"queue_limit": 1}))
    first = (
        await client.submit_job_from_manifest(manifest(one_node("first", steps=5)), priority=2)
    ).job_id
    await stack.eventually(lambda: client.get_job_status(first), lambda job: job.queued)
    second = await submit(client, one_node("second", steps=5))
    waiting = await stack.eventually(
        lambda: client.get_job_status(second),
        lambda job: job.queued and job.message.startswith("waits for admission"),
    )
    assert waiting.message == "waits for admission: the cluster's queue is full (1 requests)"
    assert waiting.queued and waiting.queued.position == 2
    assert (await client.get_cluster_status()).deferred == 1
    assert (await client.get_job_status(first)).priority == 2

    # Nobody decides for a while; what Temporal knows is told all the same.
    control = stack.pid("control")
    os.kill(control, signal.SIGSTOP)
    try:
        frozen = await client.get_job_status(second)
        listed = {job.job_id: job.state for job in (await client.list_jobs()).jobs}
    finally:
        os.kill(control, signal.SIGCONT)
    assert frozen.state == listed[second] == JobState.QUEUED
    assert "is a control worker running?" in frozen.partial

    asked = await client.pause_job(both)
    assert asked.asked == "pause" or asked.state == JobState.PAUSED
    await stack.until(client, both, JobState.PAUSED)
    for job_id in (first, second):
        await stack.until(client, job_id, JobState.COMPLETED)

    resumed = json.loads(stack.loomos("jobs", "resume", both, "--wait", "-o", "json").stdout)
    assert (resumed["state"], resumed["asked"]) == ("running", None)
    cancelled = stack.loomos("jobs", "cancel", both)
    assert "cancel asked for; now running" in cancelled.stdout or "cancelled" in cancelled.stdout
    done = await stack.until(client, both, JobState.CANCELLED)
    outcomes = [attempt.outcome for attempt in done.attempts]
    assert (outcomes[0], outcomes[-1]) == ("pause", "cancelled")
    assert done.training is not None
    assert done.attempts[-1].to_step == done.training.step
