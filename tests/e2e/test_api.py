"""The gateway over HTTP: errors are problems, nothing wrong reaches Temporal, the schema holds."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.openapi import document
from loomos.client.http import LoomOSClient
from loomos.security.tokens import mint, read_key
from tests.malformed import Malformed, malformed
from tests.stack import Stack

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    token = stack.folder.token_file.read_text()
    async with httpx.AsyncClient(
        base_url=stack.state.settings["cluster"]["endpoint"],
        headers={"Authorization": f"Bearer {token}"},
    ) as client:
        yield client


def assert_problem(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["title"] and body["detail"]
    return body


@pytest.mark.parametrize("case", malformed(), ids=lambda case: case.name)
async def test_a_malformed_body_is_a_4xx_that_names_the_field(
    http: httpx.AsyncClient, case: Malformed
) -> None:
    body = assert_problem(await http.post("/api/v1/jobs", json=case.document), 422)
    named = [error["path"] for error in body["errors"]]
    assert any(path.startswith(case.field) for path in named), named


async def test_none_of_the_malformed_reached_temporal(client: LoomOSClient) -> None:
    names = {job.name for job in (await client.list_jobs(limit=200)).jobs}
    assert "wrong" not in names


@pytest.mark.parametrize(
    ("body", "field"),
    [("{", "body"), ("null", "$"), ("[]", "$"), ('"text"', "$"), ("", "$")],
)
async def test_a_body_that_is_no_manifest_is_refused(
    http: httpx.AsyncClient, body: str, field: str
) -> None:
    response = await http.post(
        "/api/v1/jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert_problem(response, 422)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/jobs/nothing", 404),
        ("GET", "/api/v1/jobs/nothing/logs", 404),
        ("GET", "/api/v1/jobs/nothing/metrics?follow=true", 404),
        ("GET", "/api/v1/jobs/nothing/events", 404),
        ("GET", "/api/v1/jobs/nothing/artifacts", 404),
        ("POST", "/api/v1/jobs/nothing/cancel", 404),
        ("POST", "/api/v1/jobs/nothing/pause", 404),
        ("DELETE", "/api/v1/jobs/nothing", 404),
        ("GET", "/api/v1/jobs/UPPER", 422),
        ("GET", "/api/v1/jobs?limit=0", 422),
        ("GET", "/api/v1/jobs?cursor=???", 400),
        ("GET", "/api/v1/jobs?cursor=aaaa", 400),
        ("GET", "/api/v1/jobs?label=x", 400),
        ("GET", "/api/v1/jobs?state=happy", 422),
        ("GET", "/api/v1/workers/nothing", 404),
        ("POST", "/api/v1/workers/nothing/drain", 404),
        ("POST", "/api/v1/workers/node-1/explode", 422),
        ("DELETE", "/api/v1/cluster/nodes/node-1", 409),
        ("GET", "/api/v1/nothing", 404),
        ("PATCH", "/api/v1/jobs", 405),
    ],
)
async def test_errors_are_problems(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    assert_problem(await http.request(method, path), status)


async def test_scopes_are_kept(stack: Stack, http: httpx.AsyncClient) -> None:
    key = read_key(stack.folder.signing_key_file)

    def bearer(scope: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {mint(key, 'eve', [scope], timedelta(minutes=5))}"}

    probe = {
        "apiVersion": "loomos.ai/v1",
        "kind": "TrainingJob",
        "metadata": {"name": "scoped"},
        "spec": {"algorithm": "noop"},
    }
    read, submit = bearer("read"), bearer("submit")
    assert (await http.get("/api/v1/jobs", headers=read)).status_code == 200
    assert_problem(await http.post("/api/v1/jobs", json=probe, headers=read), 403)
    assert (await http.post("/api/v1/jobs", json=probe, headers=submit)).status_code == 201
    assert_problem(await http.post("/api/v1/workers/node-1/cordon", headers=submit), 403)
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer x"}):
        answer = await http.get("/api/v1/jobs", headers=headers)
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_health_needs_no_token_and_readiness_names_the_parts(stack: Stack) -> None:
    base = stack.state.settings["cluster"]["endpoint"]
    async with httpx.AsyncClient(base_url=base) as client:
        assert (await client.get("/api/v1/health")).json()["status"] == "ok"
        ready = (await client.get("/api/v1/ready")).json()
    assert ready == {"status": "ok", "parts": {"temporal": "ok", "store": "ok"}}


async def test_an_event_stream_goes_on_after_the_last_id(
    stack: Stack, client: LoomOSClient, http: httpx.AsyncClient
) -> None:
    job = await client.submit_job(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "TrainingJob",
            "metadata": {"name": "events"},
            "spec": {"algorithm": "noop"},
        }
    )
    url = f"/api/v1/jobs/{job.job_id}/events"
    first = (await http.get(url)).text
    ids = [line[4:] for line in first.splitlines() if line.startswith("id: ")]
    assert first.count("event: state") == 2 and "event: end" in first
    rest = (await http.get(url, headers={"Last-Event-ID": ids[0]})).text
    assert rest.count("event: state") == 1


def test_the_checked_in_openapi_is_current() -> None:
    assert (ROOT / "docs" / "openapi.json").read_text() == document(), "run `make openapi`"


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": 7},
        {"weights": {"a": 0}},
        {"quotas": {"a": {"nodes": -1}}},
        {"starves_after": "P2W"},
        {"standby_nodes": -1},
        {"preempt": False},
    ],
    ids=str,
)
async def test_wrong_rules_are_refused(http: httpx.AsyncClient, wrong: dict[str, Any]) -> None:
    (field,) = wrong
    before = (await http.get("/api/v1/scheduler/config")).json()
    body = assert_problem(await http.put("/api/v1/scheduler/config", json=before | wrong), 422)
    assert body["errors"][0]["path"].startswith(field)
    assert (await http.get("/api/v1/scheduler/config")).json() == before
    assert before["starves_after"] == "12h"


LONGEST_URL = 60_000
DOCUMENT = json.loads(document())
LEFT_OUT = re.compile(r"/events$|/workers/.+/|/cluster/nodes/")
"""What answers for ever, or stops nodes that other tests need."""
RULES = ("put", "/api/v1/scheduler/config")
"""Rules made up at random would hold up every test after this one."""
OPERATIONS = [
    (method, path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if not LEFT_OUT.search(path) and (method, path) != RULES
]


@pytest.fixture(scope="module")
def schema() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(DOCUMENT)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_an_operation_answers_as_the_schema_says(
    method: str, path: str, schema: schemathesis.BaseSchema, stack: Stack
) -> None:
    """Requests made from the schema, good and bad, get no 5xx and what the schema promises."""
    operation = schema[path][method.upper()]
    cases = st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)

    @settings(
        max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases)
    def answers(case: schemathesis.Case) -> None:
        check(case, stack)

    answers()


def check(case: schemathesis.Case, stack: Stack) -> None:
    if case.query:
        case.query.pop("follow", None)
    response = case.call(
        base_url=stack.state.settings["cluster"]["endpoint"],
        headers={"Authorization": f"Bearer {stack.folder.token_file.read_text()}"},
    )
    if response.status_code == 400 and len(response.request.url or "") > LONGEST_URL:
        return  # HTTP itself refuses it, before the application hears of it
    case.validate_response(
        response,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
