"""What is accepted, however odd, is described, cancelled and deleted on a real stack."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from pydantic import BaseModel, ValidationError

from loomos.jobs.continual import ContinualJob
from loomos.jobs.states import JobState
from loomos.jobs.verification import VerificationJob
from loomos.limits import DEEPEST
from loomos.manifest import Experiment, RLCampaign, TrainingJob
from tests.manifests import HEAD, deep, documents
from tests.stack import Stack

PLACES: dict[type[BaseModel], str] = {
    TrainingJob: "jobs",
    Experiment: "experiments",
    RLCampaign: "campaigns",
    VerificationJob: "verifications",
    ContinualJob: "schedules",
}
IDS = ("job_id", "experiment_id", "campaign_id", "verification_id", "name")
AT_ONCE = 6
FINAL = ("completed", "failed", "cancelled")


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    token = stack.folder.token_file.read_text().strip()
    async with httpx.AsyncClient(
        base_url=stack.state.settings["cluster"]["endpoint"] + "/api/v1",
        headers={"Authorization": f"Bearer {token}"},
        timeout=120,
    ) as client:
        yield client


def accepted(count: int, among: int, of: int) -> list[tuple[str, dict[str, Any]]]:
    """Documents that are accepted, as many of each kind as there are."""
    found: list[tuple[str, dict[str, Any]]] = []

    @seed(of)
    @settings(
        max_examples=among, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(documents())
    def collect(made: tuple[type[BaseModel], dict[str, Any]]) -> None:
        kind, document = made
        if kind not in PLACES or len(found) >= count:
            return
        try:
            kind.model_validate(document)
            text = json.dumps(document, allow_nan=False)
        except (ValidationError, ValueError):
            return
        document = json.loads(text)
        document["metadata"]["name"] = f"odd-{len(found)}"
        try:
            kind.model_validate(document)
        except ValidationError:
            return
        found.append((PLACES[kind], document))

    collect()
    return found


async def ask(http: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
    """An answer; a stack that is busy says 503 and is asked again."""
    for _ in range(60):
        try:
            answer = await http.request(method, path, **more)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code != 503:
            return answer
        await asyncio.sleep(1)
    raise AssertionError(f"{method} {path} is never answered: {answer and answer.text}")


async def live(http: httpx.AsyncClient, place: str, document: dict[str, Any]) -> str:
    """The life of one document; says how it went."""
    key = {"Idempotency-Key": document["metadata"]["name"]}
    made = await ask(http, "POST", f"/{place}", json=document, headers=key)
    if made.status_code in (400, 404, 409, 422):
        assert made.json()["detail"]
        return f"{place} {made.status_code}"
    assert made.status_code in (200, 201), (document, made.text)
    body = made.json()
    name = next(body[key] for key in IDS if key in body).removeprefix("verify/")
    seen = await ask(http, "GET", f"/{place}/{name}")
    assert seen.status_code == 200, (document, seen.text)
    if place != "schedules":
        cancelled = await ask(http, "POST", f"/{place}/{name}/cancel")
        assert cancelled.status_code in (202, 409), (document, cancelled.text)
        await until_final(http, f"/{place}/{name}", document)
    gone = await ask(http, "DELETE", f"/{place}/{name}")
    assert gone.status_code in (204, 404), (document, gone.text)
    for _ in range(200):
        if (await ask(http, "GET", f"/{place}/{name}")).status_code == 404:
            return f"{place} lived"
        await asyncio.sleep(0.2)
    raise AssertionError(f"{name} is still there")


async def until_final(http: httpx.AsyncClient, path: str, document: dict[str, Any]) -> None:
    for _ in range(600):
        seen = await ask(http, "GET", path)
        assert seen.status_code == 200, (document, seen.text)
        if seen.json()["state"] in FINAL:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"{path} does not end: {seen.text[:2000]}")


async def lives(http: httpx.AsyncClient, chosen: list[tuple[str, dict[str, Any]]]) -> Counter[str]:
    places = asyncio.Semaphore(AT_ONCE)
    ended: Counter[str] = Counter()

    async def one(place: str, document: dict[str, Any]) -> None:
        async with places:
            ended[await live(http, place, document)] += 1

    async with asyncio.TaskGroup() as group:
        for place, document in chosen:
            group.create_task(one(place, document))
    listed = await http.get("/jobs")
    assert listed.status_code == 200
    return ended


async def test_odd_documents_that_are_accepted_live_and_end(http: httpx.AsyncClient) -> None:
    chosen = accepted(4, among=60, of=7)
    ended = await lives(http, chosen)
    assert sum(ended.values()) == len(chosen) == 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_300_odd_documents_that_are_accepted_live_and_end(http: httpx.AsyncClient) -> None:
    chosen = accepted(400, among=4000, of=300)
    ended = await lives(http, chosen)
    print(dict(ended))
    assert sum(count for how, count in ended.items() if how.endswith("lived")) >= 300


@pytest.mark.parametrize(
    "body",
    [
        '{"weight_decay": Infinity}',
        '{"weight_decay": 1e400}',
        '{"max_steps": ' + "9" * 4000 + "}",
        '{"learning_rate": NaN}',
    ],
)
async def test_numbers_that_no_worker_can_read_are_refused_at_the_door(
    http: httpx.AsyncClient, body: str
) -> None:
    text = json.dumps(
        {
            **HEAD,
            "kind": "TrainingJob",
            "spec": {
                "model": {"base_model": "init:llama", "tokenizer": "byte"},
                "data": {"training_dataset": "/data"},
            },
        }
    ).replace('"tokenizer": "byte"', f'"tokenizer": "byte", "fine_tuning_config": {body}')
    refused = await http.post("/jobs", content=text, headers={"Content-Type": "application/json"})
    assert refused.status_code in (400, 422), refused.text
    assert JobState.QUEUED not in refused.text


@pytest.mark.parametrize(
    ("levels", "said"), [(40, f"deeper than {DEEPEST} levels"), (200, "nested deeper than 64")]
)
async def test_a_configuration_too_deep_is_refused_at_the_door(
    http: httpx.AsyncClient, levels: int, said: str
) -> None:
    document = {
        **HEAD,
        "kind": "TrainingJob",
        "spec": {
            "model": {
                "base_model": "init:llama",
                "tokenizer": "byte",
                "config": deep(levels),
                "fine_tuning_config": {"max_steps": 1},
            },
            "data": {"training_dataset": "/data"},
        },
    }
    refused = await http.post("/jobs", json=document)
    assert refused.status_code == 422
    [fault] = refused.json()["errors"]
    assert fault["path"].startswith("spec.model.config.a")
    assert said in fault["message"]
