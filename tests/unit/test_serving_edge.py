"""What a serving process refuses, and how: in OpenAI's words, never with 500."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from loomos.jobs.serving import EndpointSpec, Route, Target
from loomos.security.tokens import mint
from loomos.serving import api_errors
from loomos.serving.app import create_app
from loomos.serving.engine import Engine
from loomos.serving.hosting import Hosted, ModelHost
from loomos.serving.outcomes import RecordWriters
from loomos.serving.service import Service
from loomos.serving.table import RouteTable
from loomos.storage._local import LocalStore
from tests.unit.test_engine import PROMPTS, TOKENIZER, greedy, make_model

KEY = "k" * 64
VERSION = "chat@0123456789abcdef"


class OneModel:
    """A host that holds one version."""

    loaded, failed, goldens = [VERSION], dict[str, str](), dict[str, str]()

    def __init__(self, engine: Engine) -> None:
        self._hosted = Hosted(version=VERSION, engine=engine)

    def get(self, version: str) -> Hosted | None:
        return self._hosted if version == VERSION else None


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    store = LocalStore(tmp_path)
    table = RouteTable(store)
    table.routes["chat"] = Route(
        endpoint="chat",
        generation=1,
        spec=EndpointSpec(model=VERSION, max_queue=100_000),
        stable=Target(version=VERSION),
        replicas=["s1"],
        issued_at=datetime.now(UTC),
    )
    engine = Engine(make_model(), TOKENIZER, max_batch=8)
    service = Service(table, cast(ModelHost, OneModel(engine)), RecordWriters(store, "s1"), "s1")
    transport = httpx.ASGITransport(create_app(service, KEY), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {mint(KEY, 'me', ['read'], timedelta(hours=1))}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://s1/v1", headers=headers, timeout=60
    ) as client:
        yield client
    assert service.is_idle and not service.running
    await service.close()
    engine.close()


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "chat", "prompt": "hello", "max_tokens": 3, "temperature": 0, **changes}


def raw(field: str, literal: str) -> str:
    """A body in which a field is what JSON libraries would not write."""
    return json.dumps(body(**{field: "@"})).replace('"@"', literal)


REFUSED = [
    ("seed", "18446744073709551616"),
    ("seed", "-9223372036854775809"),
    ("seed", "1" * 5000),
    ("seed", "true"),
    ("seed", "1.0"),
    ("temperature", "-0.1"),
    ("temperature", "1e400"),
    ("temperature", "NaN"),
    ("temperature", "Infinity"),
    ("temperature", '"0.5"'),
    ("temperature", "false"),
    ("top_p", "0"),
    ("top_p", "-1e-320"),
    ("top_p", "1.0000001"),
    ("top_p", "-Infinity"),
    ("n", "0"),
    ("n", "17"),
    ("n", "99999999999999999999"),
    ("max_tokens", "0"),
    ("max_tokens", "1000001"),
    ("max_tokens", "1e3"),
    ("stop", '["a","b","c","d","e"]'),
    ("stop", json.dumps("x" * 257)),
    ("prompt", "[-1]"),
    ("prompt", "[2147483648]"),
    ("prompt", "[1000000]"),
    ("prompt", "[true]"),
    ("prompt", "[1.0]"),
    ("prompt", "[[1], []]"),
    ("prompt", "[]"),
    ("prompt", "[[1], 2]"),
    ("prompt", "[99999999999999999999999]"),
    ("prompt", '"\\ud800"'),
    ("prompt", '["a", "\\udfff"]'),
    ("prompt", "[" * 10_000 + "]" * 10_000),
    ("prompt", json.dumps(["a"] * 257)),
    ("model", '"\\ud800"'),
    ("user", '"\\ud800"'),
    ("user", json.dumps("x" * 513)),
    ("metadata", "1e400"),
    ("metadata", "[NaN]"),
    ("metadata", '{"a": "\\udc00"}'),
    ("metadata", "[" * 10_000 + "]" * 10_000),
    ("stream", "1"),
    ("stream_options", '{"include_usage": "maybe"}'),
]


async def test_what_cannot_be_meant_is_refused_with_400_and_a_message(
    http: httpx.AsyncClient,
) -> None:
    for field, literal in REFUSED:
        answer = await http.post("/completions", content=raw(field, literal).encode())
        assert answer.status_code == 400, (field, literal[:40], answer.text)
        error = answer.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error", (field, literal[:40])


@pytest.mark.parametrize("content", ["", "{", "[]", "nul", "\ufeff{}", '{"model": 5}', "{}"])
async def test_what_is_no_request_is_refused_with_400(
    http: httpx.AsyncClient, content: str
) -> None:
    for path in ("/completions", "/chat/completions", "/feedback"):
        answer = await http.post(path, content=content.encode())
        assert answer.status_code == 400 and answer.json()["error"]["message"]


async def test_numbers_at_their_bounds_are_taken(http: httpx.AsyncClient) -> None:
    for changes in (
        {"seed": 2**63 - 1, "n": 16, "temperature": 1},
        {"seed": -(2**63), "temperature": 2},
        {"temperature": 1e-320, "seed": 1},
        {"temperature": 1e-40, "top_p": 1e-320},
        {"top_p": 1.0, "temperature": 1},
        {"prompt": [0, len(TOKENIZER) - 1]},
    ):
        answer = await http.post("/completions", json=body(**changes))
        assert answer.status_code == 200, (changes, answer.text)


async def test_a_text_that_cannot_fit_is_refused_before_it_is_read(http: httpx.AsyncClient) -> None:
    long: list[tuple[str, dict[str, Any]]] = [
        ("/completions", body(prompt="x" * 5_000_000)),
        ("/completions", body(prompt=["a", "x" * 5_000_000])),
        ("/completions", body(prompt=[1] * 1_000_000)),
        ("/chat/completions", {**body(), "messages": [{"role": "user", "content": "x" * 10**6}]}),
    ]
    for path, content in long:
        answer = await http.post(path, json=content)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_turns_without_text_count_too(http: httpx.AsyncClient) -> None:
    turns = [{"role": "user", "content": ""}] * 9_000
    answer = await http.post("/chat/completions", json={**body(), "messages": turns})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "9000 characters" in answer.text


async def test_every_refusal_has_openais_body(http: httpx.AsyncClient) -> None:
    none: dict[str, str] = {"Authorization": ""}
    wanted: list[tuple[int, str | None, Any]] = [
        (401, "invalid_api_key", http.get("/models", headers=none)),
        (401, "invalid_api_key", http.post("/completions", json=body(), headers=none)),
        (404, "model_not_found", http.get("/models/other")),
        (404, "model_not_found", http.post("/completions", json=body(model="other"))),
        (404, None, http.get("/no/such/path")),
        (405, None, http.get("/completions")),
        (413, "request_too_large", http.post("/completions", content=b" " * (17 << 20))),
    ]
    for status, code, call in wanted:
        answer = await call
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["message"] and error["code"] == code, answer.text


async def test_a_body_without_end_is_refused_before_it_is_all_there(
    http: httpx.AsyncClient,
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield b" " * (1 << 20)

    answer = await http.post("/completions", content=endless())
    assert answer.status_code == 413
    assert sent <= api_errors.LARGEST_BODY + (2 << 20)


async def test_a_body_that_does_not_come_is_given_up(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_errors, "BODY_S", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await http.post("/completions", content=slow())
    assert answer.status_code == 408


# --- what a request can do to others ------------------------------------------------------------


def hostile(seed: int) -> bytes:
    """Some body that no honest client would send; most are refused, the others end quickly."""
    chance = random.Random(seed)
    literals = [literal for field, literal in REFUSED if len(literal) < 6000]
    fields = [*{field for field, _ in REFUSED}, "logprobs", "echo", "stream"]
    text = json.dumps(body(prompt=chance.choice([*PROMPTS, [0], [1, 2], ["a", "b"]]), max_tokens=2))
    for _ in range(chance.randint(1, 3)):
        if chance.random() < 0.5:
            value = chance.choice(literals)
        else:
            value = chance.choice(
                ["1e-320", "1e-40", "1e-9", "0", "1", "2", "0.5", str(2**63 - 1), "null", '""']
            )
        text = f"{text[:-1]}, {json.dumps(chance.choice(fields))}: {value}}}"
    if chance.random() < 0.1:
        text = text[: chance.randrange(len(text))]
    return text.encode()


async def fuzz(http: httpx.AsyncClient, requests: int) -> None:
    """Honest answers are those of an undisturbed model; nothing hostile gets a 5xx."""
    wanted = [TOKENIZER.decode(greedy(make_model(), prompt, 24)) for prompt in PROMPTS]
    statuses = set[int]()

    async def honest(number: int) -> None:
        prompt = PROMPTS[number % 4]
        answer = await http.post("/completions", json=body(prompt=prompt, max_tokens=24))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == wanted[number % 4]

    async def wild(seed: int) -> None:
        answer = await http.post("/completions", content=hostile(seed))
        statuses.add(answer.status_code)
        assert answer.status_code < 500, (hostile(seed), answer.text)

    for first in range(0, requests, 50):
        await asyncio.gather(
            *(honest(first + i) for i in range(8)), *(wild(first + i) for i in range(50))
        )
    assert statuses == {200, 400, 404} or statuses == {200, 400}


async def test_hostile_requests_change_nothing_for_honest_ones(http: httpx.AsyncClient) -> None:
    await fuzz(http, 100)


@pytest.mark.slow
async def test_ten_thousand_hostile_requests_change_nothing_for_honest_ones(
    http: httpx.AsyncClient,
) -> None:
    await fuzz(http, 10_000)
