"""A collection on a stack whose rules let all go at once: what lives goes on all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.jobs.names import GARBAGE_SCHEDULE_ID
from loomos.jobs.retention import Sweepable
from loomos.jobs.states import JobState
from loomos.settings import TemporalSettings
from loomos.storage.layout import checkpoints_prefix, parse_checkpoint_manifest, retired_prefix
from tests.stack import Stack, manifest, running_stack, tiny_job


def checkpoints(stack: Stack, job_id: str) -> set[tuple[int, int]]:
    found = (item.key for item in stack.store().objects(checkpoints_prefix(job_id)))
    return {ref for key in found if (ref := parse_checkpoint_manifest(key)) is not None}


async def trained(
    stack: Stack, client: LoomOSClient, name: str, *states: JobState, **tuning: int
) -> str:
    document = tiny_job(name, **tuning)
    document["spec"]["resources"] = {"nodes": 1, "ranks_per_node": 1}
    job_id = (await client.submit_job(manifest(document))).job_id
    if states:
        await stack.until(client, job_id, *states)
    return job_id


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_what_has_ended_is_freed_and_what_lives_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rule in ("CHECKPOINTS", "FAILED_CHECKPOINTS", "UPLOADS", "ANSWERS"):
        monkeypatch.setenv(f"LOOMOS_RETENTION__{rule}", "0s")
    with running_stack(tmp_path / "stack") as stack:
        async with stack.client() as client:
            await _check(stack, client)


async def _check(stack: Stack, client: LoomOSClient) -> None:
    done = await trained(stack, client, "done", JobState.COMPLETED)
    paused = await trained(stack, client, "paused", max_steps=100)
    ended = await trained(stack, client, "ended", max_steps=4000)
    for job_id in (paused, ended):
        await stack.eventually(
            lambda job_id=job_id: client.get_job_status(job_id),  # type: ignore[misc]
            lambda job: job.training is not None and job.training.step >= 10,
        )
    await client.pause_job(paused)
    await stack.until(client, paused, JobState.PAUSED)
    await client.cancel_job(ended)
    await stack.until(client, ended, JobState.CANCELLED)
    kept = checkpoints(stack, paused)
    freed = checkpoints(stack, done)
    assert kept and freed and checkpoints(stack, ended)

    would = await client.retention.collect(dry_run=True)
    assert checkpoints(stack, done) == freed
    report = await client.retention.collect()
    rows = {row.what: row for row in report.freed}
    assert rows[Sweepable.CHECKPOINTS] == {r.what: r for r in would.freed}[Sweepable.CHECKPOINTS]
    assert rows[Sweepable.CHECKPOINTS].size_bytes > 0
    assert {row.note for row in report.freed} == {""}
    assert checkpoints(stack, done) == checkpoints(stack, ended) == set()
    assert checkpoints(stack, paused) == kept
    retired = [item.key for item in stack.store().objects(retired_prefix(done))]
    assert len(retired) >= len(freed)

    # The paused job goes on where it was; the cancelled one from the beginning.
    await client.resume_job(paused)
    resumed = await stack.until(client, paused, JobState.COMPLETED)
    assert resumed.attempts[-1].from_step == resumed.attempts[0].to_step > 0
    await client.restart_job(ended)
    await stack.eventually(
        lambda: client.get_job_status(ended),
        lambda job: job.training is not None and job.attempts and job.training.step >= 1,
    )
    await client.cancel_job(ended)
    await stack.until(client, ended, JobState.CANCELLED)

    # What was published still tells where it comes from, and may be built upon.
    model = (await client.get_job_status(done)).model
    assert model is not None and (await client.models.get(model)).is_signed
    assert stack.loomos("provenance", "show", model).returncode == 0
    assert stack.loomos("ledger", "audit").returncode == 0
    document = tiny_job("child", max_steps=2)
    document["spec"]["model"] = {
        "base_model": f"model:{model}",
        "fine_tuning_config": document["spec"]["model"]["fine_tuning_config"],
    }
    document["spec"]["resources"] = {"nodes": 1, "ranks_per_node": 1}
    child = (await client.submit_job(manifest(document))).job_id
    await stack.until(client, child, JobState.COMPLETED)

    address = stack.state.settings["temporal"]["address"]
    temporal = await connect(TemporalSettings(address=address))
    schedule = await temporal.get_schedule_handle(GARBAGE_SCHEDULE_ID).describe()
    assert schedule.info.next_action_times
