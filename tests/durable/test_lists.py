"""Lists of jobs, their keys and their deletion, on the real stack."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from loomos.client import listing
from loomos.client.http import LoomOSClient
from loomos.client.listing import Place, newest_first
from loomos.client.workflows import WorkflowClient
from loomos.errors import Conflict, NotFound, Unavailable
from loomos.jobs.states import JobState
from loomos.settings import TemporalSettings
from loomos.storage.layout import job_prefix
from tests.stack import Stack
from tests.wedged import temporal


def probe(name: str, project: str = "lists") -> dict[str, Any]:
    return {
        "apiVersion": "loomos.ai/v1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "project": project},
        "spec": {"algorithm": "noop"},
    }


async def test_a_list_has_each_job_once_newest_first_whatever_ends_or_restarts(
    stack: Stack, client: LoomOSClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [(await client.submit_job(probe(f"listed-{n}"))).job_id for n in range(7)]
    await asyncio.gather(*(stack.until(client, job_id, JobState.COMPLETED) for job_id in ids))
    for again in (ids[1], ids[1], ids[4]):
        await client.restart_job(again)
        await stack.until(client, again, JobState.COMPLETED)
    wanted = [ids[4], ids[1], ids[6], ids[5], ids[3], ids[2], ids[0]]

    async def listed(limit: int) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page = await client.list_jobs(project="lists", limit=limit, cursor=cursor)
            found += [job.job_id for job in page.jobs]
            cursor = page.next_cursor
            if cursor is None:
                return found

    for limit in (3, 1, 7, 200):
        await stack.eventually(lambda limit=limit: listed(limit), lambda found: found == wanted)
    # The same in windows smaller than the list, which many jobs would need.
    monkeypatch.setattr(listing, "WINDOW", 3)
    found: list[str] = []
    after: Place | None = None
    for _ in itertools.count():
        page = await newest_first(await temporal(stack), 'LoomProject = "lists"', 2, after)
        found += [execution.id for execution in page.executions]
        if (after := page.next) is None:
            break
    assert found == wanted


async def test_a_key_is_refused_for_another_name_and_free_after_deletion(
    stack: Stack, client: LoomOSClient
) -> None:
    first = await client.submit_job(probe("keyed"), idempotency_key="lists/1")
    assert first.created
    with pytest.raises(Conflict, match="used for another document"):
        await client.submit_job(probe("keyed-otherwise"), idempotency_key="lists/1")
    await stack.until(client, first.job_id, JobState.COMPLETED)
    again = await client.submit_job(probe("keyed"), idempotency_key="lists/1")
    assert (again.job_id, again.created) == (first.job_id, False)
    stack.store().put(f"{job_prefix(first.job_id)}checkpoints/g000001/fence.json", b"{}")
    await client.delete_job(first.job_id)
    other = await client.submit_job(probe("keyed"), idempotency_key="lists/1")
    assert other.created and other.job_id != first.job_id
    assert list(stack.store().objects(job_prefix(first.job_id))) == []


@pytest.mark.slow
async def test_a_deletion_that_was_interrupted_is_finished_by_the_next(
    stack: Stack, client: LoomOSClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job wrote goes first, so the record that names it is there until the end."""
    job_id = (await client.submit_job(probe("deleted"))).job_id
    await stack.until(client, job_id, JobState.COMPLETED)
    settings = TemporalSettings.model_validate(stack.state.settings["temporal"])
    store = stack.store()
    jobs = WorkflowClient(await temporal(stack), settings, store)
    key = f"{job_prefix(job_id)}logs/left"
    store.put(key, b"x")

    async def crash(workflow_id: str) -> None:
        raise Unavailable("the gateway was killed here")

    monkeypatch.setattr(jobs._jobs, "erase", crash)
    with pytest.raises(Unavailable):
        await jobs.delete_job(job_id)
    assert not store.exists(key)
    assert (await client.get_job_status(job_id)).state == JobState.COMPLETED
    await client.delete_job(job_id)

    async def look() -> bool:
        try:
            await client.get_job_status(job_id)
        except NotFound:
            return True
        return False

    await stack.eventually(look, lambda is_gone: is_gone)
    store.put(key, b"written late, or left by Temporal's retention")
    await client.delete_job(job_id)
    assert not store.exists(key)
    with pytest.raises(NotFound):
        await client.delete_job(job_id)
