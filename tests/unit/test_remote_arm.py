"""An endpoint whose answers come from a server elsewhere, whole and in pieces."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api.named_in_service import check_remote
from loomos.errors import InvalidInput, InvalidManifest
from loomos.jobs.serving import EndpointSpec, RemoteTarget, Route, Target
from loomos.serving.api_errors import ApiError
from loomos.serving.app import create_app
from loomos.serving.engine import Engine
from loomos.serving.hosting import Hosted
from loomos.serving.outcomes import Outcome
from loomos.serving.remote import RemoteArm, RemoteKeys, find_key
from loomos.serving.service import Service
from loomos.settings import RemoteKey, load_settings
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


def service(
    target: Target, hosted: Hosted | None = None, keys: RemoteKeys | None = None
) -> tuple[Service, Records]:
    records = Records()
    table: Any = Table(target)
    host: Any = Host(hosted)
    kept: Any = records
    return Service(table, host, kept, "s", remote_keys=keys), records


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
    keys = {KEY_VARIABLE: RemoteKey(url=remote.base_url)}
    made, records = service(Target(version="m@1", remote=remote), keys=keys)
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
    keys = {KEY_VARIABLE: RemoteKey(url=remote.base_url)}
    made, records = service(Target(version="m@1", remote=remote), keys=keys)
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


# --- keys ---------------------------------------------------------------------------------------

VLLM = "https://vllm.example/v1"


def remote(url: str, key: str | None) -> RemoteTarget:
    return RemoteTarget(base_url=url, model="m", api_key_env=key)


async def sent_to(target: RemoteTarget, keys: RemoteKeys) -> list[str | None]:
    """The `Authorization` of every request that leaves for a server elsewhere."""
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"choices": []})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        await RemoteArm(target, http, keys).ask("/completions", {"prompt": "x"})
    return sent


async def test_a_document_gets_no_variable_of_the_process_sent_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    asked = remote("https://elsewhere.example/v1", "AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ApiError, match=r"no key 'AWS_SECRET_ACCESS_KEY' .* serving\.remotes"):
        await sent_to(asked, {})
    assert await sent_to(remote("https://elsewhere.example/v1", None), {}) == [None]
    with pytest.raises(InvalidManifest, match=r"spec\.remote\.api_key_env: no key .* has none"):
        check_remote(asked, {}, "spec.remote")


async def test_a_key_of_the_operator_is_sent_below_its_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("of-a-file\n")
    monkeypatch.setenv("VLLM_KEY", "of-a-variable")
    keys = {"VLLM_KEY": RemoteKey(url=VLLM), "FILED": RemoteKey(url=VLLM, file=tmp_path / "key")}
    assert await sent_to(remote(f"{VLLM}/", "VLLM_KEY"), keys) == ["Bearer of-a-variable"]
    assert await sent_to(remote(f"{VLLM}/more", "FILED"), keys) == ["Bearer of-a-file"]
    check_remote(remote("https://VLLM.example:443/v1", "VLLM_KEY"), keys, "remote")


@pytest.mark.parametrize(
    "url",
    [
        "http://vllm.example/v1",
        "https://vllm.example:8443/v1",
        "https://vllm.example.evil.org/v1",
        "https://vllm.example@evil.org/v1",
        "https://evil.org/?https://vllm.example/v1",
        "https://vllm.example/v10",
        "https://vllm.example/v1/../v2",
        "https://vllm.example/v1/%2e%2e/v2",
        "https://vllm.example/v1\\..\\v2",
        "https://vllm.example/v1?to=",
        "https://vllm.example/v1#",
        "https://[vllm.example/v1",
    ],
)
def test_a_key_goes_nowhere_else(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"sends the key 'VLLM_KEY' to https://vllm\.example/v1"):
        find_key(remote(url, "VLLM_KEY"), {"VLLM_KEY": RemoteKey(url=VLLM)})


def test_the_operator_names_keys_in_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(f"serving: {{remotes: {{VLLM_KEY: {{url: '{VLLM}'}}}}}}")
    monkeypatch.setenv("LOOMOS_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("LOOMOS_STATE_DIR", str(tmp_path / "no-stack"))
    assert load_settings().serving.remotes == {"VLLM_KEY": RemoteKey(url=VLLM)}
