"""The `openai` client, unchanged, against gateway and server: twenty calls, bad ones included."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from loomos.client.http import LoomOSClient
from loomos.errors import Conflict, InvalidInput, NotFound
from loomos.jobs.serving import EndpointSpec, RemoteTarget
from loomos.serving.outcomes import read_new
from loomos.storage.layout import outcomes_prefix
from tests.serving import save_tiny
from tests.stack import Stack

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
async def chat(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """An endpoint with a random model."""
    async with stack.client() as client:
        await client.deploy_model(save_tiny(tmp_path_factory.mktemp("m") / "m", 3), "openai-chat")
        yield "openai-chat"
        await client.endpoints.delete("openai-chat")


@pytest.fixture(params=["gateway", "server"])
def api(request: pytest.FixtureRequest, stack: Stack) -> openai.OpenAI:
    """The client, pointed at the gateway or straight at a server."""
    urls = {
        "gateway": stack.state.settings["cluster"]["endpoint"],
        "server": next(m.url for m in stack.state.members if m.name == "serve-1"),
    }
    token = stack.folder.token_file.read_text().strip()
    return openai.OpenAI(base_url=f"{urls[request.param]}/v1", api_key=token, max_retries=0)


def test_twenty_calls(api: openai.OpenAI, chat: str) -> None:
    ask = api.chat.completions.create
    # 1-2: models
    assert chat in [model.id for model in api.models.list()]
    assert api.models.retrieve(chat).owned_by == "loomos"
    # 3-5: a conversation, whole and in pieces
    whole = ask(model=chat, messages=HELLO, max_tokens=12, temperature=0)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    stream = ask(
        model=chat,
        messages=HELLO,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == text
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    # 6-7: the same seed, the same answer
    sampled = [
        ask(model=chat, messages=HELLO, max_tokens=12, seed=5).choices[0].message.content
        for _ in range(2)
    ]
    assert sampled[0] == sampled[1] != text
    # 8: several answers
    several = ask(model=chat, messages=HELLO, max_tokens=8, n=3, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) == 3
    # 9: a stop text
    stop = text[3:5]
    stopped = ask(model=chat, messages=HELLO, max_tokens=12, temperature=0, stop=[stop])
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    # 10: content in parts
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    again = ask(model=chat, messages=parts, max_tokens=12, temperature=0)
    assert again.choices[0].message.content == text
    # 11-13: completions, of one text, of several, in pieces
    first = api.completions.create(model=chat, prompt="abc", max_tokens=6, temperature=0)
    both = api.completions.create(model=chat, prompt=["abc", "xyz"], max_tokens=6, temperature=0)
    assert both.choices[0].text == first.choices[0].text
    assert [choice.index for choice in both.choices] == [0, 1]
    flow = api.completions.create(
        model=chat, prompt="abc", max_tokens=6, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in flow) == first.choices[0].text
    # 14-20: what cannot be done, each with the parameter that is wrong
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    bad: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
        ({"model": "no-such"}, openai.NotFoundError, "model"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": image}, openai.BadRequestError, "messages"),
        ({"tools": tools}, openai.BadRequestError, "tools"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "max_tokens"),
        (
            {"messages": [{"role": "user", "content": "x" * 400}]},
            openai.BadRequestError,
            "messages",
        ),
    ]
    for changes, kind, param in bad:
        with pytest.raises(kind) as raised:
            ask(**{"model": chat, "messages": HELLO, **changes})
        body = raised.value.body
        assert isinstance(body, dict) and body["param"] == param, body


def test_a_wrong_key_is_refused(api: openai.OpenAI, chat: str) -> None:
    stranger = api.with_options(api_key="not-a-token")
    with pytest.raises(openai.AuthenticationError, match="token") as raised:
        stranger.chat.completions.create(model=chat, messages=HELLO)
    assert raised.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError, match="token"):
        stranger.models.list()


def test_every_refusal_is_an_error_of_openai_with_a_message(api: openai.OpenAI, chat: str) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such") as missing:
        api.models.retrieve("no-such")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="there is no POST /v1/embeddings"):
        api.embeddings.create(model=chat, input="x")
    # The gateway refuses before any route, a server because there is none.
    climbing = (openai.NotFoundError, openai.BadRequestError)
    with pytest.raises(climbing, match=r"there is no|the path holds"):
        api.get("/models/..%2F..%2Fhealth", cast_to=object)
    with pytest.raises(openai.APIStatusError, match="not allowed") as wrong_verb:
        api.get("/completions", cast_to=object)
    assert wrong_verb.value.status_code == 405
    with pytest.raises(openai.APIStatusError, match=r"more than|larger than") as too_large:
        api.completions.create(model=chat, prompt="x" * (17 << 20))
    assert too_large.value.status_code == 413


@pytest.mark.parametrize(
    "literal", ["[" * 10_000 + "]" * 10_000, '"\\ud800"', "1e400", "NaN", "1" * 5000]
)
async def test_json_that_nobody_could_write_down_is_refused_with_400(
    stack: Stack, client: LoomOSClient, chat: str, literal: str
) -> None:
    token = stack.folder.token_file.read_text().strip()
    endpoint = stack.state.settings["cluster"]["endpoint"]
    content = json.dumps({"model": chat, "prompt": "x", "metadata": "@"}).replace('"@"', literal)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http:
        answer = await http.post(f"{endpoint}/v1/completions", content=content.encode())
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


async def test_load_beyond_what_may_wait_is_refused_with_a_time(
    stack: Stack, client: LoomOSClient, chat: str
) -> None:
    detail = await client.endpoints.get(chat)
    await client.endpoints.configure(chat, detail.spec.model_copy(update={"max_queue": 1}))
    url = next(m.url for m in stack.state.members if m.name == "serve-1")
    token = stack.folder.token_file.read_text().strip()
    body = {"model": chat, "prompt": "x", "max_tokens": 200, "temperature": 0}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:

        async def flood() -> list[httpx.Response]:
            answers = [http.post(f"{url}/v1/completions", json=body) for _ in range(60)]
            return list(await asyncio.gather(*answers))

        answers = await stack.eventually(
            flood, lambda found: any(a.status_code == 429 for a in found)
        )
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    await client.endpoints.configure(chat, detail.spec)


async def test_a_server_that_is_asked_to_stop_finishes_what_it_has(
    stack: Stack, client: LoomOSClient, chat: str
) -> None:
    url = next(m.url for m in stack.state.members if m.name == "serve-1")
    token = stack.folder.token_file.read_text().strip()
    before = stack.pid("serve-1")
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(headers=headers, timeout=60, base_url=url) as http:
        body = {"model": chat, "prompt": "x", "max_tokens": 230, "temperature": 0}
        running = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(8)]
        await stack.eventually(
            lambda: http.get("/health"),
            lambda a: a.json()["running"].get(chat, 0) == 8,
            every_s=0.01,
        )
        os.kill(before, signal.SIGTERM)
        answers = await asyncio.gather(*running)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {230}
    await stack.eventually(_pid(stack), lambda pid: pid not in (None, before))
    await stack.eventually(lambda: client.endpoints.get(chat), lambda e: e.is_ready)


def _pid(stack: Stack):  # type: ignore[no-untyped-def]
    async def pid() -> int | None:
        return next(m.pid for m in stack.state.members if m.name == "serve-1")

    return pid


async def test_a_model_whose_process_dies_is_loaded_again(
    client: LoomOSClient, stack: Stack, chat: str
) -> None:
    server = psutil.Process(stack.pid("serve-1"))
    engines = [p for p in server.children(recursive=True) if p.ppid() not in (server.pid, 1)]
    assert engines
    for engine in engines:
        engine.kill()

    token = stack.folder.token_file.read_text().strip()
    url = next(m.url for m in stack.state.members if m.name == "serve-1")
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http:
        body = {"model": chat, "prompt": "x", "max_tokens": 4}
        answer = await stack.eventually(
            lambda: http.post(f"{url}/v1/completions", json=body), lambda a: a.is_success, 60
        )
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert psutil.Process(server.pid).create_time() == server.create_time()


async def test_outcomes_and_feedback_are_written_without_any_text(
    stack: Stack, client: LoomOSClient, chat: str
) -> None:
    answer = await client.inference(chat, {"text": "a secret"}, max_tokens=5, user="somebody")
    async with httpx.AsyncClient() as http:
        token = stack.folder.token_file.read_text().strip()
        endpoint = stack.state.settings["cluster"]["endpoint"]
        body = {"model": chat, "id": answer.id, "score": "down"}
        refused = await http.post(
            f"{endpoint}/v1/feedback", json=body, headers={"Authorization": f"Bearer {token}"}
        )
        assert refused.status_code == 400  # `model` is not part of it
        url = next(m.url for m in stack.state.members if m.name == "serve-1")
        del body["model"]
        accepted = await http.post(
            f"{url}/v1/feedback", json=body, headers={"Authorization": f"Bearer {token}"}
        )
        assert accepted.status_code == 202

    async def records() -> list[dict[str, Any]]:
        return read_new(stack.store(), outcomes_prefix(chat), {}).records

    found = await stack.eventually(records, lambda rs: any(r.get("score") == -1 for r in rs))
    mine = [r for r in found if r["id"] in answer.id]
    assert mine and mine[0]["tokens"] == answer.usage["completion_tokens"]
    assert mine[0]["arm"] == "stable"
    assert all("secret" not in str(record) and "somebody" not in str(record) for record in found)


async def test_an_endpoint_may_stand_for_a_server_elsewhere(
    stack: Stack, client: LoomOSClient, chat: str
) -> None:
    """Our own server plays the one elsewhere: it speaks the same protocol as vLLM."""
    detail = await client.endpoints.get(chat)
    url = next(m.url for m in stack.state.members if m.name == "serve-1")
    spec = EndpointSpec(
        model=detail.route.stable.version,
        remote=RemoteTarget(base_url=f"{url}/v1", model=chat),
    )
    await client.endpoints.configure("far", spec)
    await stack.eventually(lambda: client.endpoints.get("far"), lambda e: e.is_ready)
    # Without its key the server elsewhere refuses, and its words come through.
    with pytest.raises(InvalidInput, match=r"bearer token|token"):
        await client.inference("far", {"text": "x"})
    await client.endpoints.delete("far")


async def test_the_sdk_deploys_a_folder_and_asks_it(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "trained_model", 11)
    deployment = await client.deploy_model(
        model_path=folder,
        endpoint_name="my-model-api",
        scaling_config={"min_instances": 1, "max_instances": 10, "auto_scaling": True},
    )
    assert deployment.is_ready and deployment.spec.replicas.max == 10
    response = await client.inference(
        endpoint_name="my-model-api",
        input_data={"text": "What is artificial intelligence?"},
        timeout_seconds=30,
    )
    assert response.version == deployment.route.stable.version
    assert response.usage["completion_tokens"] > 0
    name, version = deployment.route.stable.version.split("@")
    with pytest.raises(NotFound, match="was uploaded: no job here made it"):
        await client.ledger.lineage(name, version)
    again = await client.models.upload(folder, "my-model-api")
    assert f"my-model-api@{again.version}" == deployment.route.stable.version
    with pytest.raises(Conflict, match=r"is served by my-model-api|move the alias"):
        await client.models.delete(deployment.route.stable.version)
    with pytest.raises(InvalidInput, match=r"scaling_config: no 'max'"):
        await client.deploy_model(folder, "x", {"max": 3})
    with pytest.raises(Conflict, match="is stable at my-model-api"):
        await client.models.unalias("my-model-api", "stable")
    await client.endpoints.delete("my-model-api")
    with pytest.raises(NotFound):
        await client.inference("my-model-api", {"text": "x"})
    # What was made, served and is served no more can be deleted, and made anew.
    version = deployment.route.stable.version
    with pytest.raises(Conflict, match="loomos models unalias my-model-api stable"):
        await client.models.delete(version)
    await client.models.unalias("my-model-api", "stable")
    with pytest.raises(NotFound, match="has no alias 'stable'; it has none"):
        await client.models.unalias("my-model-api", "stable")
    await client.models.delete(version)
    with pytest.raises(NotFound):
        await client.models.get("my-model-api")
    assert "my-model-api" not in [model.name for model in (await client.models.list()).models]
    assert (await client.models.upload(folder, "my-model-api")).version == again.version


async def test_a_folder_with_a_pickle_is_refused(client: LoomOSClient, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", 12)
    (folder / "optimizer.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidInput, match="may run code"):
        await client.models.upload(folder, "pickled")


def test_the_command_line_uploads_aliases_serves_and_asks(stack: Stack, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", 13)
    stack.loomos("models", "upload", str(folder), "--name", "by-hand")
    stack.loomos("models", "edit", "by-hand", "--description", "tiny", "--tag", "team=tests")
    described = stack.loomos("models", "describe", "by-hand").stdout
    assert "signed" in described and "team=tests" in described
    assert "by-hand" in stack.loomos("models", "list").stdout
    assert "ready" in stack.loomos("models", "deploy", "by-hand", "--endpoint", "by-hand").stdout
    stack.loomos("models", "infer", "by-hand", "hello", "--max-tokens", "4")
    assert "serve-1" in stack.loomos("endpoints", "describe", "by-hand").stdout
    refused = stack.loomos("models", "infer", "no-such", "hello", check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    stack.loomos("endpoints", "delete", "by-hand")
    assert "removed" in stack.loomos("models", "unalias", "by-hand", "stable").stdout
    version = described.split("version")[1].split()[0]
    assert "deleted" in stack.loomos("models", "delete", f"by-hand@{version}").stdout
    assert "by-hand" not in stack.loomos("models", "list").stdout
