"""The life of jobs on the real stack, through the SDK."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.errors import Conflict, InvalidManifest, NotFound
from loomos.jobs.states import JobState
from loomos.manifest import JobManifest
from loomos.settings import TemporalSettings
from loomos.storage.layout import gang_key
from tests.stack import Stack, manifest, tiny_job


def one_node(name: str, *, steps: int = 4000, **spec: Any) -> dict[str, Any]:
    """A job on one node that runs until somebody stops it, unless told otherwise."""
    job = tiny_job(name, max_steps=steps)
    job["spec"]["resources"] = {"nodes": 1}
    job["spec"] |= spec
    return job


async def submit(client: LoomOSClient, document: dict[str, Any]) -> str:
    return (await client.submit_job_from_manifest(manifest(document))).job_id


async def until_step(stack: Stack, client: LoomOSClient, job_id: str, step: int) -> None:
    await stack.eventually(
        lambda: client.get_job_status(job_id),
        lambda job: (
            job.state == JobState.RUNNING and job.training is not None and job.training.step >= step
        ),
    )


async def test_a_noop_job_completes(stack: Stack, client: LoomOSClient) -> None:
    job_id = await submit(
        client,
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "TrainingJob",
            "metadata": {"name": "probe", "labels": {"team": "a-team"}, "project": "p1"},
            "spec": {"algorithm": "noop", "priority": 2},
        },
    )
    done = await stack.until(client, job_id, JobState.COMPLETED)
    assert (done.progress, done.priority, done.labels) == (100, 2, {"team": "a-team"})
    assert [entry.state for entry in done.timeline] == ["running", "completed"]


async def test_jobs_are_found_by_state_owner_project_and_label(
    stack: Stack, client: LoomOSClient
) -> None:
    for number in range(3):
        job = {
            "apiVersion": "loomos.ai/v1",
            "kind": "TrainingJob",
            "metadata": {"name": f"find-{number}", "labels": {"n": str(number)}, "project": "find"},
            "spec": {"algorithm": "noop"},
        }
        await stack.until(client, await submit(client, job), JobState.COMPLETED)

    async def names(**filters: Any) -> list[str]:
        return [job.name for job in (await client.list_jobs(**filters)).jobs]

    await stack.eventually(
        lambda: names(project="find", states=["completed"]),
        lambda found: found == ["find-2", "find-1", "find-0"],
    )
    assert await names(project="find", labels={"n": "1"}) == ["find-1"]
    assert await names(project="find", states=["running"]) == []
    assert await names(owner="nobody") == []
    first = await client.list_jobs(project="find", limit=2)
    rest = await client.list_jobs(project="find", limit=2, cursor=first.next_cursor)
    assert [job.name for job in (*first.jobs, *rest.jobs)] == ["find-2", "find-1", "find-0"]


async def test_an_idempotency_key_makes_one_job(client: LoomOSClient) -> None:
    probe = manifest(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "TrainingJob",
            "metadata": {"name": "once"},
            "spec": {"algorithm": "noop"},
        }
    )
    first = await client.submit_job_from_manifest(probe, idempotency_key="k1")
    again = await client.submit_job_from_manifest(probe, idempotency_key="k1")
    assert (first.created, again.created) == (True, False)
    assert first.job_id == again.job_id
    other = JobManifest.from_dict({**probe.template, "spec": {"algorithm": "noop", "priority": 1}})
    with pytest.raises(Conflict, match="was used for another document"):
        await client.submit_job_from_manifest(other, idempotency_key="k1")


async def test_two_jobs_run_a_third_waits_and_the_urgent_one_goes_first(
    stack: Stack, client: LoomOSClient
) -> None:
    firm = {"checkpoint_steps": 10, "preemptible": False}
    running = [await submit(client, one_node(f"busy-{n}", runtime=firm)) for n in range(2)]
    for job_id in running:
        await until_step(stack, client, job_id, 1)
    patient = await submit(client, one_node("patient", steps=3))
    await stack.eventually(client.get_cluster_status, lambda s: len(s.queue) == 1)
    urgent = await submit(client, one_node("urgent", steps=3, priority=1))
    status = await stack.eventually(client.get_cluster_status, lambda s: len(s.queue) == 2)
    assert [q.job_id for q in status.queue] == [urgent, patient]
    assert status.queue[0].reason == "nodes that would do are in use"

    await client.cancel_job(running[0])
    done = [await stack.until(client, job, JobState.COMPLETED) for job in (urgent, patient)]
    await client.cancel_job(running[1])
    await stack.until(client, running[1], JobState.CANCELLED)

    began = [job.attempts[0].started_at for job in done]
    assert began[0] < began[1]


async def test_a_changed_priority_changes_the_queue(stack: Stack, client: LoomOSClient) -> None:
    blocker = tiny_job("blocker", max_steps=4000)
    blocker["spec"]["runtime"]["preemptible"] = False
    first = await submit(client, blocker)
    await until_step(stack, client, first, 1)
    early, late = [await submit(client, one_node(n, steps=2)) for n in ("early", "late")]
    await stack.eventually(
        client.get_cluster_status, lambda s: [q.job_id for q in s.queue] == [early, late]
    )
    changed = await client.change_job(late, priority=1, labels={"why": "hurry"})
    assert (changed.priority, changed.labels) == (1, {"why": "hurry"})
    await stack.eventually(
        client.get_cluster_status, lambda s: [q.job_id for q in s.queue] == [late, early]
    )
    for job_id in (first, early, late):
        await client.cancel_job(job_id)
        await stack.until(client, job_id, JobState.CANCELLED)


async def test_a_cancel_reaches_the_ranks_at_once(stack: Stack, client: LoomOSClient) -> None:
    job_id = await submit(client, tiny_job("cancel-me", max_steps=4000))
    await until_step(stack, client, job_id, 5)
    assert stack.hosted("node-1") and stack.hosted("node-2")
    began = time.monotonic()
    await client.cancel_job(job_id)

    async def hosted() -> int:
        return len(stack.hosted("node-1")) + len(stack.hosted("node-2"))

    await stack.eventually(hosted, lambda count: count == 0, within_s=20)
    print(f"cancel to the end of the last rank: {time.monotonic() - began:.2f} s")
    done = await stack.until(client, job_id, JobState.CANCELLED)
    assert done.finished_at is not None
    records = (await client.get_job_metrics(job_id)).records
    last = max(r["step"] for r in records)
    await stack.eventually(
        lambda: asyncio.to_thread(
            lambda: [o.key for o in stack.store().objects(f"jobs/{job_id}/checkpoints/")]
        ),
        lambda keys: any(f"s{last:010d}/manifest.json" in key for key in keys),
    )


async def test_pause_gives_the_nodes_back_and_resume_goes_on(
    stack: Stack, client: LoomOSClient
) -> None:
    undisturbed = await submit(client, tiny_job("plain", max_steps=120))
    expected = await stack.until(client, undisturbed, JobState.COMPLETED)
    job_id = await submit(client, tiny_job("paused", max_steps=120))
    await until_step(stack, client, job_id, 20)
    await client.pause_job(job_id)
    paused = await stack.until(client, job_id, JobState.PAUSED)
    assert (await client.get_cluster_status()).leases == []
    with pytest.raises(Conflict, match="already paused"):
        await client.pause_job(job_id)
    # A change while paused must not take nodes: the lease would be lost.
    await client.change_job(job_id, priority=2)
    assert (await client.get_cluster_status()).leases == []
    await client.resume_job(job_id)
    done = await stack.until(client, job_id, JobState.COMPLETED)
    assert paused.attempts[0].outcome == "pause"
    assert done.attempts[1].from_step == paused.attempts[0].to_step
    assert done.published is not None and expected.published is not None
    assert done.published.weights_sha256 == expected.published.weights_sha256


@pytest.mark.slow
async def test_a_job_moves_to_another_node_while_it_runs(
    stack: Stack, client: LoomOSClient
) -> None:
    job_id = await submit(client, one_node("mover", steps=120))
    await until_step(stack, client, job_id, 10)
    (here,) = (await client.get_job_status(job_id)).attempts[0].nodes
    there = {"node-1": "node-2", "node-2": "node-1"}[here]
    with pytest.raises(NotFound, match="no node 'nowhere'"):
        await client.migrate_job(job_id, ["nowhere"])
    await client.migrate_job(job_id, [there])
    done = await stack.until(client, job_id, JobState.COMPLETED)
    assert [attempt.nodes for attempt in done.attempts] == [[here], [there]]
    assert done.attempts[1].from_step == done.attempts[0].to_step
    assert done.attempts[1].from_step >= 10


async def test_draining_a_node_moves_its_job_away(stack: Stack, client: LoomOSClient) -> None:
    job_id = await submit(client, one_node("refugee"))
    await until_step(stack, client, job_id, 5)
    (here,) = (await client.get_job_status(job_id)).attempts[0].nodes
    await client.drain_worker(here)
    moved = await stack.eventually(
        lambda: client.get_job_status(job_id), lambda job: len(job.attempts) == 2
    )
    assert moved.attempts[1].nodes != [here]
    drained = await stack.eventually(
        lambda: client.get_worker(here), lambda worker: worker.state == "cordoned"
    )
    assert drained.jobs == []
    assert drained.load is not None and drained.load.memory_percent is not None
    await client.uncordon_worker(here)
    await client.cancel_job(job_id)
    await stack.until(client, job_id, JobState.CANCELLED)


@pytest.mark.slow
async def test_a_cancelled_job_can_be_restarted_and_goes_on(
    stack: Stack, client: LoomOSClient
) -> None:
    job_id = await submit(client, one_node("again", steps=400))
    await until_step(stack, client, job_id, 15)
    restarted = await client.restart_job(job_id)
    assert restarted.state not in (JobState.CANCELLED, JobState.FAILED)
    await stack.eventually(
        lambda: client.get_job_status(job_id), lambda job: len(job.attempts) == 2
    )
    await until_step(stack, client, job_id, 20)
    await client.cancel_job(job_id)
    await stack.until(client, job_id, JobState.CANCELLED)
    with pytest.raises(Conflict):
        await client.pause_job(job_id)
    await client.restart_job(job_id)
    done = await stack.until(client, job_id, JobState.COMPLETED)
    assert done.attempts[0].from_step >= 15
    assert done.attempts[0].generation == 3
    await client.restart_job(job_id, from_scratch=True)
    anew = await stack.eventually(
        lambda: client.get_job_status(job_id), lambda job: bool(job.attempts)
    )
    assert anew.attempts[0].from_step == 0
    with pytest.raises(Conflict, match="cancel it first"):
        await client.delete_job(job_id)
    await client.cancel_job(job_id)
    await stack.until(client, job_id, JobState.CANCELLED)
    await client.delete_job(job_id)
    with pytest.raises(NotFound):
        await until_gone(client, job_id)


async def until_gone(client: LoomOSClient, job_id: str) -> None:
    """Ask for a job until Temporal has deleted its record, which it does in the background."""
    for _ in range(120):
        await client.get_job_status(job_id)
        await asyncio.sleep(0.5)


async def test_a_job_ends_at_its_max_duration(stack: Stack, client: LoomOSClient) -> None:
    document = one_node("endless", runtime={"max_duration": "6s", "checkpoint_steps": 50})
    job_id = await submit(client, document)
    failed = await stack.until(client, job_id, JobState.FAILED)
    assert "ran for runtime.max_duration (6s)" in failed.message
    assert failed.attempts[0].to_step is not None and failed.attempts[0].to_step > 0


async def test_bad_data_fails_at_once_and_says_what(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n' * 20 + "not json\n")
    document = one_node("bad-data")
    document["spec"]["data"] = {"training_dataset": str(bad)}
    failed = await stack.until(client, await submit(client, document), JobState.FAILED)
    assert "bad.jsonl line 21 is not JSON" in failed.message
    assert len(failed.attempts) == 1
    document["spec"]["data"] = {"training_dataset": str(tmp_path / "nothing")}
    failed = await stack.until(client, await submit(client, document), JobState.FAILED)
    assert "does not exist" in failed.message
    assert failed.attempts == []


async def test_what_a_job_says_can_be_read_streamed_and_resumed(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    document = tiny_job("talker", max_steps=25)
    job_id = await submit(client, document)
    states, events, last = [], [], None
    async for kind, data in client.stream_job_events(job_id):
        if kind == "state":
            states.append(data["state"])
        elif kind == "event":
            events.append(data["message"])
        elif kind == "job":
            last = data
    assert [s for i, s in enumerate(states) if s not in states[:i]] == [
        "queued",
        "starting",
        "running",
        "publishing",
        "completed",
    ]
    assert "checkpoint of step 10 committed" in events
    assert last is not None and last["state"] == "completed"

    records = (await client.get_job_metrics(job_id)).records
    steps = [r["step"] for r in records if r["kind"] == "step"]
    assert steps == list(range(1, 26))
    in_first = len(stack.store().get(_first_key(stack, job_id)).splitlines())
    later = await client.get_job_metrics(job_id, after="g000001:n0000=1")
    assert later.records == records[in_first:]
    newest = await client.get_job_metrics(job_id, tail=3)
    assert (newest.records, newest.next_cursor) == (records[-3:], None)
    tenths = (await client.get_job_metrics(job_id, every=10)).records
    assert [r["step"] for r in tenths if r["kind"] == "step"] == [10, 20]
    logs = (await client.get_job_logs(job_id)).records
    assert {record["node"] for record in logs} == {"node-1", "node-2"}
    assert logs == sorted(logs, key=lambda record: record["at"])
    of_one = (await client.get_job_logs(job_id, rank=1)).records
    assert of_one and {record["source"].split()[1] for record in of_one} == {"1"}
    followed = [record async for record in client.stream_job_logs(job_id)]
    assert followed == logs

    folder = await client.download_job_artifact(job_id, "trained_model", tmp_path / "model")
    assert {p.name for p in folder.iterdir()} >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    one = await client.download_job_artifact(job_id, "config.json", tmp_path / "one")
    assert one.read_text() == (folder / "config.json").read_text()
    with pytest.raises(NotFound, match="no artifact 'nothing'"):
        await client.download_job_artifact(job_id, "nothing", tmp_path)


def _first_key(stack: Stack, job_id: str) -> str:
    return next(stack.store().objects(f"jobs/{job_id}/metrics/")).key


async def test_a_batch_with_one_wrong_manifest_submits_nothing(client: LoomOSClient) -> None:
    good, wrong = tiny_job("batch-good"), tiny_job("batch-wrong")
    good["metadata"]["project"] = wrong["metadata"]["project"] = "batch"
    wrong["spec"]["priority"] = 99
    with pytest.raises(InvalidManifest, match=r"spec\.priority"):
        await client.submit_batch_jobs([manifest(good), manifest(wrong)])
    assert (await client.list_jobs(project="batch")).jobs == []


async def test_a_published_version_is_a_base_model(stack: Stack, client: LoomOSClient) -> None:
    job_id = await submit(client, one_node("parent", steps=5))
    parent = await stack.until(client, job_id, JobState.COMPLETED)
    document = one_node("child", steps=5)
    document["spec"]["model"] = {
        "base_model": f"model:{parent.model}",
        "fine_tuning_config": {
            "max_steps": 5,
            "batch_size": 4,
            "sequence_length": 64,
            "method": "lora",
        },
    }
    child = await stack.until(client, await submit(client, document), JobState.COMPLETED)
    names = {a.path for a in (await client.list_artifacts(child.job_id)).artifacts}
    assert {"model.safetensors", "adapter/adapter_model.safetensors"} <= names


async def test_a_job_is_short_in_history_and_readable_in_temporals_ui(
    stack: Stack, client: LoomOSClient
) -> None:
    job_id = await submit(client, tiny_job("historian", max_steps=100))
    await stack.until(client, job_id, JobState.COMPLETED)
    settings = TemporalSettings.model_validate(stack.state.settings["temporal"])
    temporal = await connect(settings)
    handle = temporal.get_workflow_handle(job_id)
    events = [event async for event in handle.fetch_history_events()]
    assert len(events) < 100
    description = await handle.describe()
    assert (await description.static_summary() or "").startswith("sft init:llama for ")
    raw = "".join(str(event) for event in events)
    secret = stack.state.settings["storage"]["secret_key"]
    assert secret not in raw


async def test_the_process_that_forks_ranks_serves_nobody(stack: Stack, client: LoomOSClient):
    """A rank forked while a thread of its parent looked up a peer's name hung for ever."""
    job = await client.submit_job_from_manifest(manifest(tiny_job("forks", max_steps=300)))
    await stack.eventually(
        lambda: client.get_job_status(job.job_id),
        lambda found: found.training is not None and found.training.step >= 2,
    )
    listening = {
        process.pid: [c for c in process.net_connections("tcp") if c.status == "LISTEN"]
        for node in ("node-1", "node-2")
        for process in stack.hosted(node)
    }
    agents = {p.pid for n in ("node-1", "node-2") for p in stack.hosted(n) if p.children()}
    assert len(agents) == 2
    assert not any(listening[agent] for agent in agents)
    meeting = json.loads(stack.store().get(gang_key(job.job_id, 1)))
    ports = {pid: [c.laddr.port for c in found] for pid, found in listening.items()}
    assert len([pid for pid, open_ in ports.items() if meeting["port"] in open_]) == 1
    await client.cancel_job(job.job_id)
    await stack.until(client, job.job_id, JobState.CANCELLED)
