"""What requests cost the gateway: looks into the store, and bodies that take long to read."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from api import traffic
from api.traffic import Traffic
from loomos.errors import NotFound
from loomos.jobs.serving import EndpointSpec, Route, ServerStatus, Target
from loomos.serving import api_errors
from loomos.serving.api_errors import MOST_MEMBERS, ApiError, decode
from loomos.serving.table import create_route
from loomos.storage import Store
from loomos.storage._local import LocalStore


def endpoint(store: Store, name: str, version: str) -> None:
    now = datetime.now(UTC)
    spec, target = EndpointSpec(model=version), Target(version=version)
    create_route(store, Route(endpoint=name, generation=1, spec=spec, stable=target, issued_at=now))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the store was looked into."""
    began: list[float] = []

    def read(store: Store) -> list[ServerStatus]:
        began.append(time.monotonic())
        return []

    monkeypatch.setattr(traffic, "read_servers", read)
    monkeypatch.setattr(traffic, "FRESH_S", 0.5)
    return began


async def test_names_that_do_not_exist_cost_one_look_for_all(
    tmp_path: Path, looks: list[float]
) -> None:
    store = LocalStore(tmp_path)
    endpoint(store, "chat", "m@1")
    seen = Traffic(store)
    assert await seen.holders("chat") == [] and len(looks) == 1
    asked = [asyncio.create_task(seen.holders(f"none-{n}")) for n in range(300)]
    named = [asyncio.create_task(seen.endpoint_of(f"none-{n}")) for n in range(300)]
    await asyncio.sleep(0)
    async with asyncio.timeout(0.4):  # those that wait for a look hold up no other
        for _ in range(100):
            await seen.holders("chat")
    results = await asyncio.gather(*asked, *named, return_exceptions=True)
    assert {type(result) for result in results} == {NotFound}
    assert "known: chat" in str(results[0]) and "endpoints: chat" in str(results[-1])
    assert 2 <= len(looks) <= 3
    assert all(later - sooner >= 0.5 for sooner, later in itertools.pairwise(looks))


async def test_an_endpoint_is_found_as_soon_as_it_is_there(
    tmp_path: Path, looks: list[float]
) -> None:
    store = LocalStore(tmp_path)
    seen = Traffic(store)
    assert await seen.holders("") == []
    endpoint(store, "chat", "m@1")
    assert await seen.holders("chat") == []
    endpoint(store, "helper", "n@2")
    found = [await seen.endpoint_of(name) for name in ("helper", "m", "n@2")]
    assert found == ["helper", "chat", "helper"]
    with pytest.raises(NotFound, match="nor one that serves such a model"):
        await seen.endpoint_of("n@1")


@pytest.mark.parametrize(
    "value", ["{},", "[],", '"",', "0,", '"a":0,', '"{",{},', '"\\\\",{},', '"\\"",[],']
)
def test_a_body_of_millions_of_values_is_refused_before_it_is_read(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        pytest.fail("it was read")

    monkeypatch.setattr(api_errors, "from_json", read)
    content = value * (4_000_000 // len(value))
    is_object = value.startswith('"a"')
    body = f'{{"x": {{{content}"b": 0}}}}' if is_object else f'{{"x": [{content}0]}}'
    with pytest.raises(ApiError, match=r"more than 1,048,576 values, or 200,000 lists"):
        decode(body.encode())


def test_marks_within_texts_are_no_values() -> None:
    code = '{"a": [1, {"b": "\\\\"}]}, \\ ' * 100_000
    body = json.dumps({"messages": [{"role": "user", "content": code}] * 2})
    assert body.count("{") > MOST_MEMBERS
    assert decode(body.encode())["messages"][1]["content"] == code
    assert len(decode(json.dumps([7] * 1_000_000).encode())) == 1_000_000
