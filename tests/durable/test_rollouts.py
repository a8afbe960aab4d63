"""Canaries on a real stack: promoted, rolled back, steered, and with processes that die."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.errors import Conflict, NotFound
from loomos.jobs.rollouts import RolloutState, RolloutStatus
from loomos.serving.table import read_route
from loomos.settings import TemporalSettings
from tests.serving import Users, rollout, save_tiny, spoil, until_over
from tests.stack import Stack

MOST_EVENTS_PER_STAGE = 30


class Versions:
    """Registered versions of one model."""

    def __init__(self, name: str, good: list[str], bad: str) -> None:
        self.name, self.good, self.bad = name, good, bad


@pytest.fixture(scope="module")
async def versions(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """Two that work and one that cannot sample."""
    root: Path = tmp_path_factory.mktemp("versions")
    async with stack.client() as client:
        made = [
            await client.models.upload(save_tiny(root / str(seed), seed), "tiny")
            for seed in range(2)
        ]
        broken = await client.models.upload(spoil(root / "0", root / "bad"), "tiny")
    good = [f"tiny@{detail.version}" for detail in made]
    return Versions("tiny", good, f"tiny@{broken.version}")


@pytest.fixture
async def endpoint(
    stack: Stack, client: LoomOSClient, versions: Versions, request: pytest.FixtureRequest
) -> AsyncIterator[str]:
    """An endpoint that serves the first version, for one test."""
    name = f"e{abs(hash(request.node.name)) % 10**8}"
    await client.deploy_model(versions.good[0], name)
    yield name
    try:
        await client.rollouts.steer(name, "abort")
        await until_over(stack, client, name)
    except (Conflict, NotFound):
        pass
    await client.endpoints.delete(name)


async def stage_of(stack: Stack, client: LoomOSClient, endpoint: str, stage: str) -> RolloutStatus:
    return await stack.eventually(
        lambda: client.rollouts.get(endpoint),
        lambda status: status.stage == stage or status.state.is_final,
    )


async def test_a_sound_version_goes_through_every_stage_and_becomes_stable(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions
) -> None:
    async with Users(stack, endpoint) as users:
        await client.rollouts.start(rollout(endpoint, versions.good[1]))
        status = await until_over(stack, client, endpoint)
        assert status.state == RolloutState.PROMOTED, status.message
    assert [event.stage for event in status.timeline] == [
        "preflight", "shadow", "half", "bake", "promote", "done",
    ]  # fmt: skip
    assert users.answers.keys() == {versions.good[0], versions.good[1]}
    assert not users.refused and not users.broken
    route = (await client.endpoints.get(endpoint)).route
    assert route.stable.version == versions.good[1] and route.canary is None
    aliases = (await client.models.get(versions.good[1])).aliases
    assert f"tiny@{aliases['stable']}" == versions.good[1]
    assert f"tiny@{aliases['previous']}" == versions.good[0]
    assert "canary" not in aliases
    await client.models.edit(versions.good[0], aliases={"stable": None})
    kinds = [
        e.event_type for e in (await client.ledger.events(stream=f"endpoint:{endpoint}")).events
    ]
    assert kinds.count("rollout_promoted") == 1 and kinds.count("traffic_changed") == 3


@pytest.mark.slow
async def test_history_stays_short_however_long_a_stage_is(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions
) -> None:
    async with Users(stack, endpoint):
        await client.rollouts.start(
            rollout(
                endpoint,
                versions.good[1],
                stages=[
                    {"name": "long", "canary_percent": 50, "requests": 15, "min_duration": "6s"}
                ],
            )
        )
        status = await until_over(stack, client, endpoint)
    assert status.state == RolloutState.PROMOTED, status.message
    temporal = await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))
    history = await temporal.get_workflow_handle(f"canary/{endpoint}").fetch_history()
    assert len(history.events) < 2 * MOST_EVENTS_PER_STAGE + 20
    await client.models.edit(versions.good[0], aliases={"stable": None})


async def test_a_version_that_fails_is_rolled_back_by_itself(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions
) -> None:
    stages = [{"name": "half", "canary_percent": 50, "requests": 1000}]
    async with Users(stack, endpoint) as users:
        await client.rollouts.start(rollout(endpoint, versions.bad, stages=stages))
        status = await until_over(stack, client, endpoint)
        assert status.state == RolloutState.ROLLED_BACK
        assert status.verdicts[-1].guardrail == "error"
        assert status.verdict_to_traffic_ms is not None
        seen = users.refused.total()
        assert seen > 0
        before = users.answers.total()
        await stack.eventually(_count(users), lambda count: count > before + 30)
        # At most what was on its way when the row changed, and one poll of the server.
        assert users.refused.total() <= seen + 30
    route = (await client.endpoints.get(endpoint)).route
    assert route.stable.version == versions.good[0] and route.canary is None


def _count(users: Users):  # type: ignore[no-untyped-def]
    async def count() -> int:
        return users.answers.total()

    return count


async def test_a_version_that_cannot_be_loaded_never_gets_traffic(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "m", 7)
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    made = await client.models.upload(folder, "tiny")
    await client.rollouts.start(rollout(endpoint, f"tiny@{made.version}"))
    status = await until_over(stack, client, endpoint)
    assert status.state == RolloutState.ROLLED_BACK and "cannot load" in status.message
    assert (await client.endpoints.get(endpoint)).route.canary is None
    await client.models.delete(f"tiny@{made.version}")


async def test_weights_that_changed_after_signing_are_not_loaded(
    stack: Stack, client: LoomOSClient, endpoint: str, tmp_path: Path
) -> None:
    made = await client.models.upload(save_tiny(tmp_path / "m", 8), "tiny")
    key = f"models/tiny/{made.version}/model.safetensors"
    content = bytearray(stack.store().get(key))
    content[-1] ^= 1
    stack.store().put(key, bytes(content))
    await client.rollouts.start(rollout(endpoint, f"tiny@{made.version}"))
    status = await until_over(stack, client, endpoint)
    assert status.state == RolloutState.ROLLED_BACK
    assert "is not what was signed" in status.message
    await client.models.delete(f"tiny@{made.version}")


async def test_an_unverified_version_is_refused(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions
) -> None:
    await client.rollouts.start(rollout(endpoint, versions.good[1], require_verification=True))
    status = await until_over(stack, client, endpoint)
    assert status.state == RolloutState.ROLLED_BACK
    assert "was not verified" in status.message


async def test_people_steer_and_wrong_steps_are_refused(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions
) -> None:
    stages = [
        {"name": "first", "canary_percent": 20, "requests": 10, "approval": True},
        {"name": "second", "canary_percent": 50, "requests": 100_000},
    ]
    async with Users(stack, endpoint):
        await client.rollouts.start(rollout(endpoint, versions.good[1], stages=stages))
        with pytest.raises(Conflict, match="on trial already"):
            await client.rollouts.start(rollout(endpoint, versions.bad))
        await stage_of(stack, client, endpoint, "first")
        with pytest.raises(Conflict, match="does not wait for approval"):
            await client.rollouts.steer(endpoint, "approve", stage="second")
        await client.rollouts.steer(endpoint, "pause")
        with pytest.raises(Conflict, match="already paused"):
            await client.rollouts.steer(endpoint, "pause")
        await stack.eventually(
            lambda: client.rollouts.get(endpoint), lambda s: s.state == RolloutState.PAUSED
        )
        assert read_route(stack.store(), endpoint).canary_bp == 2000
        await client.rollouts.steer(endpoint, "resume")
        await stack.eventually(
            lambda: client.rollouts.get(endpoint), lambda s: s.state == RolloutState.APPROVAL
        )
        await client.rollouts.steer(endpoint, "approve", stage="first")
        await stage_of(stack, client, endpoint, "second")
        assert read_route(stack.store(), endpoint).canary_bp == 5000
        with pytest.raises(Conflict, match="on trial; abort"):
            await client.deploy_model(versions.good[1], endpoint, wait_s=0)
        with pytest.raises(Conflict, match="on trial; abort"):
            await client.endpoints.delete(endpoint)
        await client.rollouts.steer(endpoint, "abort", reason="a change of mind")
        status = await until_over(stack, client, endpoint)
    assert status.state == RolloutState.ROLLED_BACK
    assert status.message.endswith("a change of mind")
    with pytest.raises(Conflict, match="rolled_back"):
        await client.rollouts.steer(endpoint, "abort")


async def test_a_person_may_skip_the_stages(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions
) -> None:
    stages = [{"name": "slow", "canary_percent": 10, "requests": 100_000}]
    async with Users(stack, endpoint):
        await client.rollouts.start(rollout(endpoint, versions.good[1], stages=stages))
        await stage_of(stack, client, endpoint, "slow")
        await client.rollouts.steer(endpoint, "promote")
        status = await until_over(stack, client, endpoint)
    assert status.state == RolloutState.PROMOTED, status.message
    await client.models.edit(versions.good[0], aliases={"stable": None})


async def test_without_anybody_to_renew_the_lease_traffic_goes_back_to_stable(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions
) -> None:
    stages = [{"name": "half", "canary_percent": 50, "requests": 100_000}]
    await client.rollouts.start(rollout(endpoint, versions.good[1], stages=stages))
    await stage_of(stack, client, endpoint, "half")
    url = next(m.url for m in stack.state.members if m.name == "serve-1")

    async def share() -> int:
        async with httpx.AsyncClient() as http:
            found: int = (await http.get(f"{url}/health")).json()["canary_bp"][endpoint]
            return found

    await stack.eventually(share, lambda bp: bp == 5000)
    control = stack.pid("control")
    os.kill(control, signal.SIGSTOP)
    try:
        await stack.eventually(share, lambda bp: bp == 0, within_s=10)
        async with Users(stack, endpoint, url=url) as users:
            await stack.eventually(_count(users), lambda count: count > 30)
        assert users.answers.keys() == {versions.good[0]}
    finally:
        os.kill(control, signal.SIGCONT)
    # Back again, it goes on where it was.
    await stack.eventually(share, lambda bp: bp == 5000)


DECLARED = {0, 5000, 10_000}


async def _trial_with_a_death(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions, victim: str, stage: str
) -> None:
    """Kill a process in a stage; the rollout ends all the same, with declared weights only."""
    async with Users(stack, endpoint) as users:
        await client.rollouts.start(rollout(endpoint, versions.good[1]))
        await stage_of(stack, client, endpoint, stage)
        first = read_route(stack.store(), endpoint).generation
        stack.kill(victim)
        status = await until_over(stack, client, endpoint, within_s=180)
        await stack.eventually(_count(users), lambda count: count > 20)
    assert status.state in (RolloutState.PROMOTED, RolloutState.ROLLED_BACK), status
    route = read_route(stack.store(), endpoint)
    assert route.canary is None and route.canary_bp == 0
    wanted = versions.good[1 if status.state == RolloutState.PROMOTED else 0]
    assert route.stable.version == wanted
    for number in range(first, route.generation + 1):
        row = stack.store().get(f"endpoints/{endpoint}/routes/{number:010d}.json")
        assert int(row.partition(b'"canary_bp":')[2].partition(b",")[0]) in DECLARED
    # Lost is only what was on its way through the process that died.
    if victim in ("control", "ledger", "temporal"):
        assert users.broken == 0 and not users.refused
    else:
        assert users.broken <= 3 or victim == "gateway"
    await client.models.edit(versions.good[0], aliases={"stable": None})
    await stack.eventually(_health(stack), bool)


def _health(stack: Stack):  # type: ignore[no-untyped-def]
    async def healthy() -> bool:
        return stack.state.is_healthy

    return healthy


@pytest.mark.parametrize(
    ("victim", "stage"),
    [("control", "half"), pytest.param("serve-1", "half", marks=pytest.mark.slow)],
)
async def test_a_death_in_the_middle_of_a_canary(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions, victim: str, stage: str
) -> None:
    await _trial_with_a_death(stack, client, endpoint, versions, victim, stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["preflight", "shadow", "half", "bake"])
@pytest.mark.parametrize("victim", ["control", "serve-1", "gateway", "ledger", "temporal", "s3"])
async def test_any_death_in_any_stage(
    stack: Stack, client: LoomOSClient, endpoint: str, versions: Versions, victim: str, stage: str
) -> None:
    await _trial_with_a_death(stack, client, endpoint, versions, victim, stage)
