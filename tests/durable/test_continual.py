"""Continual learning on a real stack: three periods, three updates; a failing one changes none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import ScheduleBackfill, ScheduleOverlapPolicy

from loomos.client.delivery_models import ScheduleDetail
from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.errors import Conflict, NotFound
from loomos.jobs.continual import ContinualJob
from loomos.settings import TemporalSettings
from tests import flawed
from tests.serving import Users
from tests.stack import Stack


def schedule(endpoint: str, data: Path, **spec: Any) -> ContinualJob:
    return ContinualJob.model_validate(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "ContinualLearning",
            "metadata": {"name": f"nightly-{endpoint}", "project": "night"},
            "spec": {
                "cron": "0 3 1 1 *",
                "endpoint": endpoint,
                "collect": {"captures": False, "files": [str(data)], "min_samples": 8},
                "replay": {"file": str(data.with_name("old.jsonl")), "ratio": 0.5},
                "update": {
                    "method": "lora",
                    "lora": {"r": 4, "alpha": 8},
                    "learning_rate": 1e-4,
                    "max_steps": 4,
                    "batch_size": 4,
                    "sequence_length": 64,
                    "weight_decay": 0.1,
                },
                "verify": {
                    "suites": [{"suite": "quality", "claim": 0.3}],
                    "max_prompts": 40,
                    "margin": 0.3,
                    "repeats": 5,
                },
                "rollout": {
                    "endpoint": endpoint,
                    "stages": [{"name": "half", "canary_percent": 50, "requests": 12}],
                    "guardrails": [{"event": "error", "margin": 0.3}],
                    "bake": "1s",
                    "lease": "5s",
                },
                "keep": 2,
                "priority": 4,
                **spec,
            },
        }
    )


def samples(begin: int, count: int) -> str:
    records = [
        {
            "messages": [
                {"role": "user", "content": f"What is number {i}?"},
                {"role": "assistant", "content": flawed.HARMLESS},
            ]
        }
        for i in range(begin, begin + count)
    ]
    return "".join(json.dumps(record) + "\n" for record in records)


async def period(stack: Stack, client: LoomOSClient, name: str) -> ScheduleDetail:
    """Start a period by hand and wait for its end."""
    before = len((await client.schedules.get(name)).updates)
    await client.schedules.steer(name, "trigger")
    return await stack.eventually(
        lambda: client.schedules.get(name), lambda s: len(s.updates) > before, within_s=200
    )


@pytest.mark.slow
async def test_three_periods_make_three_updates_and_a_failing_one_changes_nothing(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    base = flawed.train(tmp_path / "m", flawed.well_behaved, steps=80)
    await client.deploy_model(base, "learner")
    first = (await client.endpoints.get("learner")).route.stable.version
    data = tmp_path / "new.jsonl"
    data.write_text("")
    (tmp_path / "old.jsonl").write_text(samples(1000, 20))
    job = schedule("learner", data)
    made = await client.schedules.create(job)
    assert made.next_at is not None and not made.is_paused
    with pytest.raises(Conflict, match="there is a schedule"):
        await client.schedules.create(job)

    nothing = await period(stack, client, made.name)
    assert nothing.updates[-1].decision == "skipped"
    assert "0 new samples" in nothing.updates[-1].reason

    served = [first]
    async with Users(stack, "learner", clients=2) as users:
        for number in range(3):
            with data.open("a") as file:
                file.write(samples(100 * number, 10))
            done = await period(stack, client, made.name)
            update = done.updates[-1]
            assert update.decision == "promoted", update
            assert (update.samples, update.base) == (10, served[-1])
            served.append(update.version)
            route = (await client.endpoints.get("learner")).route
            assert route.stable.version == update.version
        assert not users.broken and not users.refused
        assert len(set(served)) == 4
        trained = (await client.list_jobs(project="night")).jobs
        assert [job.priority for job in trained] == [4, 4, 4]
        # Adapters over one base: what was promoted is served as such.
        detail = await client.models.get(served[-1])
        assert detail.lineage["base_version"] == served[-2]
        assert any(name.startswith("adapter/") for name in detail.files)

        await client.schedules.delete(made.name)
        verify = {"suites": [{"suite": "toxicity", "claim": 0.001}], "repeats": 0}
        strict = await client.schedules.create(
            schedule("learner", data, verify=verify, collect=job.spec.collect.model_dump())
        )
        with data.open("a") as file:
            file.write(samples(900, 10))
        done = await period(stack, client, strict.name)
        assert done.updates[-1].decision == "discarded"
        assert "INCONCLUSIVE" in done.updates[-1].reason
        route = (await client.endpoints.get("learner")).route
        assert route.stable.version == served[-1] and route.canary is None
    kinds = [
        e.data["decision"]
        for e in (await client.ledger.events(stream=f"schedule:{made.name}")).events
    ]
    assert kinds == ["skipped", "promoted", "promoted", "promoted", "discarded"]
    await client.schedules.delete(strict.name)
    await client.endpoints.delete("learner")


async def test_a_schedule_is_made_paused_resumed_and_deleted(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    data = tmp_path / "new.jsonl"
    data.write_text("")
    manifest = tmp_path / "s.yaml"
    manifest.write_text(schedule("nobody", data).model_dump_json(exclude_unset=True))
    stack.loomos("schedules", "create", "-f", str(manifest))
    assert "waiting" in stack.loomos("schedules", "list").stdout
    paused = json.loads(stack.loomos("schedules", "pause", "nightly-nobody", "-o", "json").stdout)
    assert paused["is_paused"]
    resumed = await client.schedules.steer("nightly-nobody", "resume")
    assert not resumed.is_paused
    # Cron: of three nights that were missed each gets its period, one after the other.
    temporal = await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))
    night = datetime(2026, 1, 1, 3, tzinfo=UTC)
    await temporal.get_schedule_handle("continual/nightly-nobody").backfill(
        *(
            ScheduleBackfill(
                start_at=night.replace(year=2026 + n) - timedelta(minutes=1),
                end_at=night.replace(year=2026 + n) + timedelta(minutes=1),
                overlap=ScheduleOverlapPolicy.BUFFER_ALL,
            )
            for n in range(-3, 0)
        )
    )
    nights = await stack.eventually(
        lambda: client.schedules.get("nightly-nobody"), lambda s: len(s.updates) == 3
    )
    assert {update.decision for update in nights.updates} == {"skipped"}
    assert len({update.update_id for update in nights.updates}) == 3
    # A period without anything new is remembered as nothing to do.
    done = await period(stack, client, "nightly-nobody")
    assert done.updates[-1].decision == "skipped"
    stack.loomos("schedules", "delete", "nightly-nobody")
    with pytest.raises(NotFound, match="no schedule"):
        await client.schedules.get("nightly-nobody")
