"""Campaigns on the real stack: what dies changes nothing, what fails loses its round."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from loomos.client.http import LoomOSClient
from loomos.errors import Conflict, NotFound
from loomos.jobs.campaigns import CampaignStatus
from loomos.jobs.states import JobState
from loomos.manifest import RLCampaign
from loomos.rl.integration import CampaignFailed, campaign_document, run_campaign
from tests.stack import Stack

MEMBERS = [
    {"name": "careful", "environment": "language", "threads": {"safety": 0.8, "coherence": 0.2}},
    {"name": "fluent", "environment": "language", "threads": {"safety": 0.2, "coherence": 0.8}},
]


def two_groups(name: str, rounds: int = 2, updates: int = 12, **more: Any) -> RLCampaign:
    """Two members that train one policy."""
    weave = {
        "total_timesteps": updates * 256,
        "n_environments": 4,
        "batch_size": 256,
        "minibatch_size": 64,
        "n_epochs": 2,
        "hidden_sizes": [16],
        "evaluate_episodes": 0,
    }
    spec = {
        "weave": weave,
        "members": MEMBERS,
        "phases": [{"rounds": rounds, "adapts": True}],
        "parallelism": 2,
        "evaluate_episodes": 8,
        "runtime": {"checkpoint_steps": 4},
        **more,
    }
    return campaign_document(name, spec)


async def over(client: LoomOSClient, campaign_id: str, within_s: float = 150) -> CampaignStatus:
    async with asyncio.timeout(within_s):
        while True:
            try:
                found = await client.campaigns.get(campaign_id)
            except Exception:  # the stack is coming back
                await asyncio.sleep(0.5)
                continue
            if found.state.is_final:
                return found
            await asyncio.sleep(0.1)


async def weights(client: LoomOSClient, version: str) -> str:
    """Digest of a published policy's weights."""
    return (await client.models.get(version)).weights_sha256


async def training(stack: Stack, client: LoomOSClient, job_id: str, step: int) -> None:
    """Wait until a member's training is that far."""
    await stack.eventually(
        lambda: client.get_job_status(job_id),
        lambda job: job.training is not None and job.training.step >= step,
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(["rank", "control"], [], id="rank and control", marks=pytest.mark.slow),
        pytest.param(["ledger"], ["node-1"], id="ledger, then a node", marks=pytest.mark.slow),
        pytest.param(["temporal"], ["everything"], id="all", marks=pytest.mark.slow),
    ],
)
async def test_kills_change_nothing_of_what_a_campaign_comes_to(
    stack: Stack, client: LoomOSClient, first: list[str], second: list[str]
) -> None:
    quiet = await run_campaign(two_groups("quiet"), client)

    started = await client.campaigns.start(two_groups("kills"))
    campaign_id = started.campaign_id
    await training(stack, client, f"{campaign_id}-careful-r1", 5)
    for member in first:
        stack.kill(member)
    if second:
        await training(stack, client, f"{campaign_id}-careful-r2", 5)
    for member in second:
        stack.kill(member)
    if "everything" in second:
        stack.up()
    found = await over(client, campaign_id)

    assert found.state == JobState.COMPLETED, found.message
    assert len(found.rounds) == len(quiet.rounds) == 3
    for mine, theirs in zip(found.rounds, quiet.rounds, strict=True):
        assert mine.scores == theirs.scores
        assert mine.weights == theirs.weights
        assert mine.appraisals == theirs.appraisals
        for name, member in mine.members.items():
            assert member.episode_return == theirs.members[name].episode_return
    assert found.weights == quiet.weights
    policy, other = found.policies["language"], quiet.policies["language"]
    assert await weights(client, policy.version) == await weights(client, other.version)


@pytest.mark.slow
async def test_a_member_that_fails_loses_its_round_only(stack: Stack, client: LoomOSClient) -> None:
    document = two_groups(
        "loses", updates=30, parallelism=1, runtime={"retries": {"max_attempts": 1}}
    )
    started = await client.campaigns.start(document)
    campaign_id = started.campaign_id
    await training(stack, client, f"{campaign_id}-careful-r1", 3)
    stack.kill("rank")  # of the only training that runs
    found = await over(client, campaign_id)

    assert found.state == JobState.COMPLETED, found.message
    _, first, second = found.rounds
    assert "careful" in first.members
    assert first.members["careful"].error
    assert first.weights == {"fluent": 1.0}
    assert set(second.weights) == {"careful", "fluent"}
    assert not second.members["careful"].error


async def test_an_environment_that_is_not_there_fails_a_campaign_at_once(
    client: LoomOSClient,
) -> None:
    document = campaign_document("absent", {"members": [{"name": "a", "environment": "No-v77"}]})
    with pytest.raises(CampaignFailed, match="No-v77"):
        await run_campaign(document, client)


async def test_a_cancelled_campaign_takes_its_trainings_along(
    stack: Stack, client: LoomOSClient
) -> None:
    started = await client.campaigns.start(two_groups("ends", updates=2000))
    campaign_id = started.campaign_id
    await training(stack, client, f"{campaign_id}-careful-r1", 1)
    await client.campaigns.cancel(campaign_id)
    found = await over(client, campaign_id)
    assert found.state == JobState.CANCELLED
    for name in ("careful", "fluent"):
        job = await client.get_job_status(f"{campaign_id}-{name}-r1")
        assert job.state == JobState.CANCELLED
    with pytest.raises(Conflict, match="nothing to cancel"):
        await client.campaigns.cancel(campaign_id)


async def test_a_campaign_by_the_command_line(stack: Stack, client: LoomOSClient, tmp_path) -> None:
    members = [{"name": "pole", "environment": "CartPole-v1"}]
    document = two_groups("shown", rounds=1, updates=2, members=members, curriculum=None)
    manifest = tmp_path / "campaign.json"
    manifest.write_text(document.model_dump_json(exclude_unset=True))

    shown = json.loads(
        stack.loomos("campaigns", "run", "-f", str(manifest), "--follow", "-o", "json").stdout
    )
    assert shown["state"] == "completed"
    policy = shown["policies"]["cartpole-v1"]
    assert policy["version"].startswith("shown-pole@")
    listed = json.loads(stack.loomos("campaigns", "list", "-o", "json").stdout)["campaigns"]
    (mine,) = (c for c in listed if c["campaign_id"] == shown["campaign_id"])
    assert (mine["state"], mine["rounds"]) == ("completed", 1)
    assert mine["returns"] == {"cartpole-v1": policy["appraisal"]["mean_return"]}
    rounds = stack.loomos("campaigns", "rounds", shown["campaign_id"]).stdout
    assert "cartpole-v1" in rounds

    again = await client.campaigns.start(document, idempotency_key="once")
    assert (await client.campaigns.start(document, idempotency_key="once")) is not None
    with pytest.raises(Conflict, match="used for another document"):
        await client.campaigns.start(
            two_groups("shown", rounds=2, members=members), idempotency_key="once"
        )
    await client.campaigns.cancel(again.campaign_id)
    with pytest.raises(NotFound, match="no campaign 'nothing'"):
        await client.campaigns.get("nothing")
