"""The scheduler on the real stack: preemption, dependencies, deadlines, rules and advice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loomos.client.http import LoomOSClient
from loomos.errors import Conflict, LoomOSError
from loomos.jobs.cluster import Quota, SchedulerConfig
from loomos.jobs.states import JobState
from tests.durable.test_jobs import one_node, submit, until_step
from tests.stack import Stack, manifest, tiny_job


@pytest.fixture
async def rules(client: LoomOSClient) -> AsyncIterator[SchedulerConfig]:
    """The rules as they are, and again after the test."""
    before = await client.scheduler.config()
    yield before
    await client.scheduler.configure(before)


def probe(name: str, *depends_on: Any) -> dict[str, Any]:
    return {
        "apiVersion": "loomos.ai/v1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {"algorithm": "noop", "depends_on": list(depends_on)},
    }


def failing(name: str) -> dict[str, Any]:
    document = tiny_job(name)
    document["spec"]["model"]["config"]["hidden_size"] = 63
    return document


async def test_a_preempted_job_ends_with_the_same_weights(
    stack: Stack, client: LoomOSClient
) -> None:
    plain = await submit(client, tiny_job("plain", max_steps=150))
    expected = await stack.until(client, plain, JobState.COMPLETED)
    low = await submit(client, tiny_job("low", max_steps=150))
    await until_step(stack, client, low, 20)
    document = tiny_job("urgent", max_steps=5)
    document["spec"]["priority"] = 1
    urgent = await submit(client, document)
    first = await stack.until(client, urgent, JobState.COMPLETED)
    done = await stack.until(client, low, JobState.COMPLETED)
    assert first.timeline[-1].at < done.timeline[-1].at
    assert [attempt.outcome for attempt in done.attempts] == ["revoked", "completed"]
    assert done.attempts[1].from_step == done.attempts[0].to_step
    assert expected.published and done.published
    assert done.published.weights_sha256 == expected.published.weights_sha256


async def test_jobs_wait_for_jobs(stack: Stack, client: LoomOSClient) -> None:
    first = await submit(client, one_node("first", steps=30))
    second = await submit(client, probe("second", first))
    third = await submit(client, probe("third", second, {"job": first, "on_failure": "run"}))
    waiting = await stack.eventually(
        lambda: client.get_job_status(second), lambda job: bool(job.timeline)
    )
    assert waiting.state == JobState.QUEUED
    assert waiting.timeline[-1].message == f"waits for {first}"
    done = [await stack.until(client, job, JobState.COMPLETED) for job in (first, second, third)]
    ends = [job.timeline[-1].at for job in done]
    assert ends == sorted(ends)
    late = await submit(client, probe("late", first))
    await stack.until(client, late, JobState.COMPLETED)


async def test_a_failed_dependency_fails_those_that_need_it(
    stack: Stack, client: LoomOSClient
) -> None:
    broken = await submit(client, failing("broken"))
    needs = await submit(client, probe("needs", broken))
    regardless = await submit(client, probe("regardless", {"job": broken, "on_failure": "run"}))
    after = await submit(client, probe("after", needs))
    await stack.until(client, broken, JobState.FAILED)
    await stack.until(client, regardless, JobState.COMPLETED)
    failed = await stack.until(client, needs, JobState.FAILED)
    assert f"depends on {broken}, which ended as failed" in failed.message
    assert f"depends on {needs}" in (await stack.until(client, after, JobState.FAILED)).message
    with pytest.raises(LoomOSError, match=r"spec\.depends_on: there is no job 'nobody-1'"):
        await submit(client, probe("orphan", "nobody-1"))


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(
    stack: Stack, client: LoomOSClient
) -> None:
    def due(name: str, hours: float, estimate: str) -> dict[str, Any]:
        deadline = datetime.now(UTC) + timedelta(hours=hours)
        document = one_node(name, steps=3)
        document["spec"]["runtime"] |= {
            "deadline": deadline.isoformat(),
            "estimated_duration": estimate,
        }
        return document

    with pytest.raises(Conflict, match=r"spec\.runtime\.deadline: .* cannot be met: by estimates"):
        await submit(client, due("late", 1, "2h"))
    impossible = due("impossible", 1, "10m")
    impossible["spec"]["resources"] = {"nodes": 1, "region": "moon"}
    with pytest.raises(Conflict, match="0 of 2 known nodes have it"):
        await submit(client, impossible)
    await stack.until(client, await submit(client, due("fine", 1, "10m")), JobState.COMPLETED)
    # Both nodes are taken for an hour by jobs of the same class.
    hour = {"checkpoint_steps": 10, "estimated_duration": "1h"}
    busy = [await submit(client, one_node(f"hour-{n}", runtime=hour)) for n in range(2)]
    for job_id in busy:
        await until_step(stack, client, job_id, 1)
    with pytest.raises(Conflict, match="cannot be met"):
        await submit(client, due("behind", 1, "30m"))
    ahead = due("ahead", 1, "30m")
    ahead["spec"]["priority"] = 2
    first = await client.submit_job_from_manifest(manifest(ahead), idempotency_key="ahead")
    # Sent again while it has its nodes, it is the same job, not a second one that comes too late.
    again = await client.submit_job_from_manifest(manifest(ahead), idempotency_key="ahead")
    assert (again.job_id, again.created) == (first.job_id, False)
    await stack.until(client, first.job_id, JobState.COMPLETED)
    for job_id in busy:
        await client.cancel_job(job_id)
        await stack.until(client, job_id, JobState.CANCELLED)


async def test_rules_are_set_shown_and_refused_by_the_command_line(
    stack: Stack, client: LoomOSClient, rules: SchedulerConfig
) -> None:
    shown = stack.loomos(
        "scheduler", "set", "--policy", "spread", "--quota", "small:nodes=1", "-o", "json"
    )
    assert json.loads(shown.stdout)["policy"] == "spread"
    assert (await client.scheduler.config()).quotas == {"small": Quota(nodes=1)}
    bad = stack.loomos("scheduler", "set", "--policy", "fastest", check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: policy: no 'fastest'; known: bin-pack")
    assert len(bad.stderr.splitlines()) == 1

    document = one_node("small")
    document["metadata"]["project"] = "small"
    first = await submit(client, document)
    await until_step(stack, client, first, 1)
    second = await submit(client, document)
    (waiting,) = (
        await stack.eventually(client.get_cluster_status, lambda s: len(s.queue) == 1)
    ).queue
    assert waiting.job_id == second
    assert waiting.reason == "project small may hold 1 nodes and would hold 2"
    described = " ".join(stack.loomos("jobs", "describe", second).stdout.split())
    assert f"number 1: {waiting.reason}" in described
    assert waiting.reason in " ".join(stack.loomos("scheduler", "status").stdout.split())
    for job_id in (first, second):
        await client.cancel_job(job_id)
        await stack.until(client, job_id, JobState.CANCELLED)


async def test_advice_says_what_would_start_a_job_now(stack: Stack, client: LoomOSClient) -> None:
    holder = await submit(client, one_node("holder"))
    await until_step(stack, client, holder, 1)
    wide = await submit(client, tiny_job("wide"))
    await stack.eventually(client.get_cluster_status, lambda s: len(s.queue) == 1)
    found = (await client.scheduler.advice()).advice
    assert (found[0].job_id, found[0].change) == (wide, "set resources.nodes to {min: 1, max: 2}")
    running = stack.loomos("optimize", "resources", "--jobs", "running").stdout
    assert "runtime.estimated_duration" in running and wide not in running
    for job_id in (holder, wide):
        await client.cancel_job(job_id)
        await stack.until(client, job_id, JobState.CANCELLED)
