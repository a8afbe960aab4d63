"""Record histories of what comes after training: `python -m tests.replay.record_delivery`.

An endpoint that is made, changed and deleted; a registry change; a verification; a rollout that is
paused, approved and promoted, one that is rolled back; a period of continual learning, and the
training of that period, which is verified and put on trial.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.jobs.rollouts import RolloutState
from loomos.settings import TemporalSettings
from tests import flawed
from tests.durable.test_continual import period, samples, schedule
from tests.durable.test_verification import job, verdict
from tests.replay.record import write_history
from tests.serving import Users, rollout, save_tiny, until_over
from tests.stack import Stack, running_stack

DATA = Path(tempfile.gettempdir()) / "loomos-samples"
"""A folder that is on every machine, so that histories name none of this one."""


async def rollouts(stack: Stack, client: LoomOSClient, root: Path) -> dict[str, str]:
    made = [await client.models.upload(save_tiny(root / f"{i}", i), "tiny") for i in range(2)]
    first, second = (f"tiny@{detail.version}" for detail in made)
    ids: dict[str, str] = {}
    stages = [{"name": "half", "canary_percent": 50, "requests": 12, "approval": True}]
    for name in ("promoted", "rolled-back"):
        await client.deploy_model(first, name)
        async with Users(stack, name):
            await client.rollouts.start(rollout(name, second, stages=stages))
            await stack.eventually(
                lambda name=name: client.rollouts.get(name), lambda s: s.stage == "half"
            )
            await client.rollouts.steer(name, "pause")
            await stack.eventually(
                lambda name=name: client.rollouts.get(name),
                lambda s: s.state == RolloutState.PAUSED,
            )
            await client.rollouts.steer(name, "resume")
            await stack.eventually(
                lambda name=name: client.rollouts.get(name),
                lambda s: s.state == RolloutState.APPROVAL,
            )
            if name == "promoted":
                await client.rollouts.steer(name, "approve", stage="half")
            else:
                await client.rollouts.steer(name, "abort", reason="recorded")
            await until_over(stack, client, name)
        ids[f"rollout-{name}"] = f"canary/{name}"
    detail = await client.endpoints.get("promoted")
    await client.endpoints.configure("promoted", detail.spec.model_copy(update={"max_queue": 3}))
    await client.endpoints.delete("promoted")
    ids["endpoint"] = "endpoint/promoted"
    return ids


async def learning(stack: Stack, client: LoomOSClient, root: Path) -> dict[str, str]:
    base = flawed.train(root / "m", flawed.well_behaved, steps=80)
    made = await client.models.upload(base, "learner")
    started = await client.verifications.start(
        job(f"learner@{made.version}", suites=[{"suite": "quality"}], max_prompts=20)
    )
    await verdict(stack, client, started)
    await client.deploy_model(f"learner@{made.version}", "learner")
    DATA.mkdir(exist_ok=True)
    (DATA / "new.jsonl").write_text(samples(0, 10))
    (DATA / "old.jsonl").write_text(samples(1000, 20))
    detail = await client.schedules.create(schedule("learner", DATA / "new.jsonl"))
    async with Users(stack, "learner", clients=2):
        done = await period(stack, client, detail.name)
    update = done.updates[-1]
    assert update.decision == "promoted", update
    workflow_id, _, run_id = update.update_id.rpartition("/")
    return {
        "verification": started.verification_id,
        "continual": workflow_id,
        "delivered": f"{detail.name}-{run_id[:8]}",
    }


async def record(stack: Stack, root: Path) -> None:
    """Make the runs and write their histories."""
    temporal = await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))
    async with stack.client() as client:
        ids = await rollouts(stack, client, root) | await learning(stack, client, root)
    changes = temporal.list_workflows('WorkflowType = "ModelChange"', limit=1)
    async for found in changes:
        ids["registry"] = found.id
    for name, workflow_id in ids.items():
        history = await temporal.get_workflow_handle(workflow_id).fetch_history()
        write_history(name, workflow_id, json.dumps(history.to_json_dict()))
        print(name, len(history.events), "events")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "stack") as stack:
        asyncio.run(record(stack, Path(folder)))


if __name__ == "__main__":
    main()
