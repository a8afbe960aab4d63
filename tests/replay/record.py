"""Record histories for the replay test from a fresh stack: `python -m tests.replay.record [NAME]`.

Records a run that recovers from a killed node, one that is paused and resumed, one that fails, a
noop, one that is preempted, one that waits for another, the cluster that served them all, an
election, a search, a population whose trials fail, and a campaign.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.jobs.names import CLUSTER_WORKFLOW_ID, leadership_workflow_id
from loomos.jobs.states import JobState
from loomos.manifest import Experiment, validate_as
from loomos.nexus.failover.election import ConsensusManager
from loomos.rl.integration import campaign_document, run_campaign
from loomos.settings import Settings, TemporalSettings
from tests.stack import CORPUS, Stack, manifest, running_stack, tiny_job

COPY = Path(tempfile.gettempdir()) / "loomos-corpus"
"""Where the corpus is copied, so that histories name no folder of the machine they come from."""

HISTORIES = Path(__file__).with_name("histories")


async def until_step(stack: Stack, client: LoomOSClient, job_id: str, step: int) -> None:
    await stack.eventually(
        lambda: client.get_job_status(job_id),
        lambda job: job.training is not None and job.training.step >= step,
    )


async def recovered(stack: Stack, client: LoomOSClient) -> str:
    job = await client.submit_job_from_manifest(
        manifest(tiny_job("recovered", COPY, max_steps=300))
    )
    await until_step(stack, client, job.job_id, 30)
    stack.kill("node-2")
    await stack.until(client, job.job_id, JobState.COMPLETED)
    return job.job_id


async def paused(stack: Stack, client: LoomOSClient) -> str:
    job = await client.submit_job_from_manifest(manifest(tiny_job("paused", COPY, max_steps=300)))
    await until_step(stack, client, job.job_id, 20)
    await client.pause_job(job.job_id)
    await stack.until(client, job.job_id, JobState.PAUSED)
    await client.change_job(job.job_id, priority=2, labels={"a": "b"})
    await client.resume_job(job.job_id)
    await stack.until(client, job.job_id, JobState.COMPLETED)
    return job.job_id


async def failed(stack: Stack, client: LoomOSClient) -> str:
    document = tiny_job("failed", COPY)
    document["spec"]["model"]["config"]["hidden_size"] = 63
    job = await client.submit_job_from_manifest(manifest(document))
    await stack.until(client, job.job_id, JobState.FAILED)
    return job.job_id


async def noop(stack: Stack, client: LoomOSClient) -> str:
    document: dict[str, Any] = tiny_job("noop")
    document["spec"] = {"algorithm": "noop"}
    job = await client.submit_job_from_manifest(manifest(document))
    await stack.until(client, job.job_id, JobState.COMPLETED)
    return job.job_id


async def preempted(stack: Stack, client: LoomOSClient) -> str:
    job = await client.submit_job_from_manifest(
        manifest(tiny_job("preempted", COPY, max_steps=300))
    )
    await until_step(stack, client, job.job_id, 20)
    urgent = tiny_job("urgent", COPY, max_steps=3)
    urgent["spec"]["priority"] = 1
    await client.submit_job_from_manifest(manifest(urgent))
    await stack.until(client, job.job_id, JobState.COMPLETED)
    return job.job_id


async def dependent(stack: Stack, client: LoomOSClient) -> str:
    first = tiny_job("first", COPY, max_steps=20)
    before = await client.submit_job_from_manifest(manifest(first))
    document: dict[str, Any] = tiny_job("dependent")
    document["spec"] = {"algorithm": "noop", "depends_on": [before.job_id]}
    job = await client.submit_job_from_manifest(manifest(document))
    await stack.until(client, job.job_id, JobState.COMPLETED)
    return job.job_id


async def led(stack: Stack, client: LoomOSClient) -> str:
    settings = Settings.model_validate(stack.state.settings)
    one, two = (
        ConsensusManager(n, ["one", "two"], 2000, 400, group="led", settings=settings)
        for n in ("one", "two")
    )
    async with one, two:

        async def standing() -> int:
            return len((await one.status()).candidates)

        await stack.eventually(standing, lambda count: count == 2)
        await one.trigger_election()
    return leadership_workflow_id("led")


async def searched(stack: Stack, client: LoomOSClient) -> str:
    return await experiment(
        client,
        "searched",
        objective={"function": "loomos.weaver.functions:branin"},
        parameters={
            "x": {"type": "uniform", "min": -5, "max": 10},
            "y": {"type": "uniform", "min": 0, "max": 15},
            "z": {"type": "choice", "values": ["a", "b"]},
        },
        pruner={"name": "asha"},
        limits=[{"metric": "value", "max": 100}],
        trials=20,
        parallelism=3,
    )


async def evolved(stack: Stack, client: LoomOSClient) -> str:
    return await experiment(
        client,
        "evolved",
        objective={"function": "absent:function"},
        parameters={"x": {"type": "uniform", "min": 0, "max": 1}},
        population={"size": 4, "generations": 4},
        parallelism=2,
    )


async def experiment(client: LoomOSClient, name: str, **spec: Any) -> str:
    """Run an experiment to its end."""
    document = {
        "apiVersion": "loomos.ai/v1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": spec,
    }
    started = await client.experiments.start(validate_as(Experiment, document))
    async for _ in client.experiments.follow(started.experiment_id):
        pass
    return started.experiment_id


def write_history(name: str, workflow_id: str, history: str) -> None:
    """Write a history without what tells of the machine it comes from."""
    text = json.dumps({"id": workflow_id, "history": json.loads(history)}, indent=1)
    text = re.sub(r'"identity": "[^"]*"', '"identity": "recorded"', text)
    text = re.sub(r'"stackTrace": "(?:[^"\\]|\\.)*"', '"stackTrace": ""', text)
    (HISTORIES / f"{name}.json").write_text(text + "\n")


async def campaigned(stack: Stack, client: LoomOSClient) -> str:
    members = [{"name": name, "environment": "language"} for name in ("one", "two")]
    weave = {"total_timesteps": 256, "batch_size": 256, "hidden_sizes": [8], "evaluate_episodes": 0}
    phases = [
        {"name": "alone", "rounds": 1, "weights": {"one": 1.0}},
        {"name": "both", "rounds": 2, "weights": {"one": 1.0, "two": 1.0}, "adapts": True},
        {"name": "reached", "until": -1.0},
    ]
    spec = {"members": members, "weave": weave, "phases": phases, "evaluate_episodes": 4}
    done = await run_campaign(campaign_document("campaigned", {**spec, "curriculum": {}}), client)
    return done.campaign_id


MAKERS = (
    recovered,
    paused,
    failed,
    noop,
    preempted,
    dependent,
    led,
    searched,
    evolved,
    campaigned,
)


async def record(stack: Stack, names: list[str]) -> None:
    """Make the runs, all or those named, and write their histories."""
    HISTORIES.mkdir(exist_ok=True)
    temporal = await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))
    async with stack.client() as client:
        ids = {
            make.__name__: await make(stack, client)
            for make in MAKERS
            if not names or make.__name__ in names
        }
    if not names or "cluster" in names:
        ids["cluster"] = CLUSTER_WORKFLOW_ID
    for name, workflow_id in ids.items():
        history = await temporal.get_workflow_handle(workflow_id).fetch_history()
        write_history(name, workflow_id, json.dumps(history.to_json_dict()))
        print(name, len(history.events), "events")


def main() -> None:
    shutil.copytree(CORPUS, COPY, dirs_exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "stack") as stack:
        asyncio.run(record(stack, sys.argv[1:]))


if __name__ == "__main__":
    main()
