"""An endpoint whose answers come from a server elsewhere, whole and in pieces."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import uvicorn

from loomos.jobs.serving import EndpointSpec, RemoteTarget, Route, Target
from loomos.serving.app import create_app
from loomos.serving.engine import Engine
from loomos.serving.hosting import Hosted
from loomos.serving.outcomes import Outcome
from loomos.serving.service import Service
from tests.unit.test_engine import TOKENIZER, make_model

KEY_VARIABLE = "LOOMOS_TEST_REMOTE_KEY"


class Table:
    """One route."""

    def __init__(self, target: Target) -> None:
        self.routes = {
            "m": Route(
                endpoint="m",
                generation=1,
                spec=EndpointSpec(model="m"),
                stable=target,
                replicas=["s"],
                issued_at=datetime.now(UTC),
            )
        }


class Host:
    """One version."""

    def __init__(self, hosted: Hosted | None) -> None:
        self.hosted = hosted
        self.failed: dict[str, str] = {}

    def get(self, version: str) -> Hosted | None:
        return self.hosted


class Records:
    """Outcomes, in a list."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def outcome(self, endpoint: str, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def service(target: Target, hosted: Hosted | None = None) -> tuple[Service, Records]:
    records = Records()
    table: Any = Table(target)
    host: Any = Host(hosted)
    kept: Any = records
    return Service(table, host, kept, "s"), records


@pytest.fixture
async def elsewhere() -> AsyncIterator[str]:
    """A real server with a real model; returns its base URL."""
    engine = Engine(make_model(), TOKENIZER)
    made, _ = service(Target(version="m@0"), Hosted(version="m@0", engine=engine))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(create_app(made, None), port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    await serving
    engine.close()


async def test_answers_come_through_whole_and_in_pieces(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "key")
    remote = RemoteTarget(base_url=elsewhere, model="m", api_key_env=KEY_VARIABLE)
    made, records = service(Target(version="m@1", remote=remote))
    transport = httpx.ASGITransport(create_app(made, None))
    body = {"model": "m", "prompt": "hello", "max_tokens": 12, "temperature": 0}
    async with httpx.AsyncClient(transport=transport, base_url="http://near") as http:
        whole = (await http.post("/v1/completions", json=body)).json()
        streamed = await http.post("/v1/completions", json=body | {"stream": True})
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        turn = await http.post("/v1/chat/completions", json=chat | {"stream": True})
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(c["text"] for chunk in chunks for c in chunk["choices"])
    assert text == whole["choices"][0]["text"] != ""
    assert whole["usage"]["completion_tokens"] == 12
    assert turn.text.endswith("data: [DONE]\n\n") and "delta" in turn.text
    assert [record.status for record in records.outcomes] == [200, 200, 200]
    assert records.outcomes[1].first_token_s is not None
    assert not any(made.running.values())
    await made.close()


async def test_a_server_that_is_away_is_said_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "key")
    remote = RemoteTarget(base_url="http://127.0.0.1:9/v1", model="m", api_key_env=KEY_VARIABLE)
    made, records = service(Target(version="m@1", remote=remote))
    transport = httpx.ASGITransport(create_app(made, None))
    body = {"model": "m", "prompt": "hello"}
    async with httpx.AsyncClient(transport=transport, base_url="http://near") as http:
        whole = await http.post("/v1/completions", json=body)
        streamed = await http.post("/v1/completions", json=body | {"stream": True})
    assert whole.status_code in (502, 503)
    assert "error" in streamed.text
    assert all(record.status >= 500 for record in records.outcomes)
    assert len(records.outcomes) == 2
    assert not any(made.running.values())
    await made.close()
