"""Workflows that are stuck: they are listed, described, ended and deleted, and spoil nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loomos.client.http import LoomOSClient
from loomos.jobs.verification import VerificationState
from loomos.registry.versions import SIGNATURE
from loomos.storage.layout import aliases_prefix, attestation_key
from tests.stack import Stack
from tests.wedged import GARBAGE, KINDS, Kind, temporal, wedge, wedged_schedule


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    token = stack.folder.token_file.read_text()
    async with httpx.AsyncClient(
        base_url=stack.state.settings["cluster"]["endpoint"] + "/api/v1",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    ) as client:
        yield client


async def listed(http: httpx.AsyncClient, kind: Kind) -> dict[str, Any]:
    answer = await http.get(kind.path)
    assert answer.status_code == 200, answer.text
    return {item[kind.name].removeprefix(kind.prefix): item for item in answer.json()[kind.members]}


@pytest.mark.slow
async def test_what_is_stuck_is_listed_described_ended_and_deleted(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    """One of every kind and every kind of garbage, all at once: failures take seconds to show."""
    client = await temporal(stack)

    async def live_and_die(kind: Kind, what: str) -> None:
        name = await wedge(client, kind, f"stuck-{kind.workflow.lower()}-{what}", what)
        path = f"{kind.path}/{name}"

        async def list_all() -> dict[str, Any]:
            return await listed(http, kind)

        await stack.eventually(list_all, lambda found: name in found, within_s=30)
        answer = await stack.eventually(
            lambda: http.get(path), lambda a: "fails at every step" in a.json()["partial"]
        )
        assert answer.status_code == 200, answer.text
        if kind.workflow == "ExperimentSweep":
            trials = (await http.get(f"{path}/trials")).json()
            assert trials["trials"] == [] and trials["partial"]
            stopped = await http.post(f"{path}/stop", json={})
            assert stopped.status_code == 409 and "cancel it" in stopped.json()["detail"]
        if kind.workflow == "TrainingRun":
            assert answer.json()["spec"] == (GARBAGE["half"]["spec"] if what == "half" else {})
            assert (await http.post(f"{path}/pause")).status_code == 409
        if kind.cancel:
            runs = await http.delete(path)
            assert runs.status_code == 409 and "runs" in runs.json()["detail"]
            ended = await http.post(
                f"{path}/{kind.cancel}", json={} if kind.cancel == "abort" else None
            )
            assert ended.status_code == 202, ended.text
            await stack.eventually(
                lambda: http.get(path), lambda a: a.json()["state"] in ("failed", "rolled_back")
            )
            again = await http.post(f"{path}/{kind.cancel}")
            assert again.status_code == 409, again.text
        gone = await http.delete(path)
        assert gone.status_code == 204, gone.text
        await stack.eventually(lambda: http.get(path), lambda a: a.status_code == 404)
        await stack.eventually(list_all, lambda found: name not in found)

    await asyncio.gather(*(live_and_die(k, what) for k in KINDS for what in GARBAGE))


@pytest.mark.slow
async def test_a_schedule_that_is_stuck_is_listed_and_its_period_ended(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    await wedged_schedule(await temporal(stack), "stuck")
    await stack.eventually(
        lambda: http.get("/schedules/stuck"), lambda a: a.json().get("is_running")
    )
    (found,) = [s for s in (await http.get("/schedules")).json()["schedules"]]
    assert (
        found["name"] == "stuck" and found["spec"] is None and "cannot be read" in found["partial"]
    )
    assert (await http.post("/schedules/stuck/cancel")).status_code == 202
    await stack.eventually(
        lambda: http.get("/schedules/stuck"), lambda a: a.json()["is_running"] is False
    )
    assert (await http.delete("/schedules/stuck")).status_code == 204
    assert (await http.get("/schedules/stuck")).status_code == 404


def name_of(kind: Kind) -> str:
    return f"bad-{kind.workflow.lower()}"


async def test_every_list_survives_a_member_that_is_stuck(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    client = await temporal(stack)
    for kind in KINDS:
        await wedge(client, kind, name_of(kind))
    stack.store().put(f"{aliases_prefix('bad-model')}0000000001.json", b"\xff{")
    stack.store().put("models/bad-model/0123456789abcdef/manifest.json", b"{}")
    for kind in KINDS:
        await stack.eventually(
            lambda kind=kind: listed(http, kind), lambda found, kind=kind: name_of(kind) in found
        )
    models = {m["name"]: m for m in (await http.get("/models")).json()["models"]}
    assert "cannot be read" in models["bad-model"]["partial"]
    for path in ("/workers", "/ledger", "/events", "/cluster/status", "/scheduler/advice"):
        assert (await http.get(path)).status_code == 200
    base = str(http.base_url).removesuffix("/api/v1/")
    openai = await http.get(base + "/v1/models")
    assert openai.status_code == 200
    ends = [
        http.post(f"{kind.path}/{name_of(kind)}/{kind.cancel}")
        if kind.cancel
        else http.delete(f"{kind.path}/{name_of(kind)}")
        for kind in KINDS
    ]
    assert {answer.status_code for answer in await asyncio.gather(*ends)} == {202, 204}
    stack.store().delete([f"{aliases_prefix('bad-model')}0000000001.json"])
    stack.store().delete(["models/bad-model/0123456789abcdef/manifest.json"])


@pytest.mark.slow
async def test_verifying_a_version_that_is_not_signed_fails_with_the_reason(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    from tests.durable.test_verification import job
    from tests.serving import save_tiny

    made = await client.models.upload(save_tiny(tmp_path / "m", 7), "unsigned")
    stack.store().delete([attestation_key("unsigned", made.version, SIGNATURE)])
    started = await client.verifications.start(
        job(f"unsigned@{made.version}", suites=[{"suite": "quality"}], max_prompts=30)
    )
    name = started.verification_id.removeprefix("verify/")
    done = await stack.eventually(
        lambda: client.verifications.get(name), lambda v: v.state.is_final
    )
    assert done.state == VerificationState.FAILED and "is not signed" in done.message, done
    assert done.partial == ""
