"""What meets a request before any of it is read, against a real gateway, by raw sockets too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import pytest

from loomos.client.http import LoomOSClient
from loomos.security.tokens import read_key
from tests.stack import Stack

PROBE = {
    "apiVersion": "loomos.ai/v1",
    "kind": "TrainingJob",
    "metadata": {"name": "edge"},
    "spec": {"algorithm": "noop"},
}


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    token = stack.folder.token_file.read_text()
    async with httpx.AsyncClient(
        base_url=stack.state.settings["cluster"]["endpoint"],
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    ) as client:
        yield client


class Wire:
    """A connection to the gateway, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, stack: Stack) -> Wire:
        url = urlsplit(stack.state.settings["cluster"]["endpoint"])
        return cls(*await asyncio.open_connection(url.hostname, url.port))

    async def send(self, text: str) -> None:
        self.writer.write(text.encode("latin-1"))
        await self.writer.drain()

    async def status(self, within_s: float = 30) -> int:
        async with asyncio.timeout(within_s):
            line = await self.reader.readline()
        return int(line.split()[1])

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def head(method: str, path: str, *headers: str) -> str:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""])


async def test_a_body_is_not_read_before_it_is_known_who_sends_it(stack: Stack) -> None:
    """The answer comes though of 60 MB only the first byte was sent."""
    token = stack.folder.token_file.read_text().strip()
    for authorization, status in (
        ((), 401),
        (("Authorization: Bearer x",), 401),
        (
            (f"Authorization: Bearer {token}",),
            413,
        ),
    ):
        wire = await Wire.open(stack)
        await wire.send(
            head(
                "POST",
                "/api/v1/jobs",
                "Content-Length: 60000000",
                "Content-Type: application/json",
                *authorization,
            )
            + "{"
        )
        assert await wire.status() == status
        await wire.close()


async def test_a_body_of_unknown_length_is_read_up_to_its_limit(
    http: httpx.AsyncClient,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"apiVersion": "'
        for _ in range(3000):
            yield b"x" * 1024

    answer = await http.post(
        "/api/v1/jobs", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413, answer.text
    assert "1,048,576 bytes" in answer.json()["detail"]


@pytest.mark.slow
async def test_whoever_says_nothing_or_half_of_a_head_is_cut_off(stack: Stack) -> None:
    silent, slow, again = [await Wire.open(stack) for _ in range(3)]
    await slow.send("GET /api/v1/health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    await again.send(head("GET", "/api/v1/health"))
    assert await again.status() == 200
    await again.send("GET /api/v1/health HTTP/1.1\r\n")
    assert [await w.status() for w in (silent, slow)] == [408, 408]
    async with asyncio.timeout(30):
        assert (await again.reader.read()).endswith(b'"parts":{}}')  # it ends
    for wire in (silent, slow, again):
        await wire.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/models/a%00b", 400),
        ("/api/v1/events?stream=%00", 400),
        ("/api/v1/jobs/edge/logs?after=%01", 400),
        ("/api/v1/jobs?owner=a%0ab", 400),
        ("/v1/..%2fhealth", 400),
        ("/v1/models/..%2F..%2fhealth", 400),
        ("/v1/%2e%2e/health", 400),
        ("/v1/a%5c..%5cb", 400),
        ("/api/v1/provenance/a/b/files/..%2f..%2fsecret", 400),
        ("/v1/%252e%252e%252fhealth", 404),
        ("/api/v1/events?start_time=0001-01-01T00:00:00%2B23:59", 422),
        ("/api/v1/events?end_time=9999-12-31T23:59:59-23:59", 422),
        ("/api/v1/events?start_time=0001-01-01T00:00:00", 200),
    ],
)
async def test_odd_urls_are_refused_and_go_nowhere(
    http: httpx.AsyncClient, path: str, status: int
) -> None:
    url = httpx.URL(str(http.base_url).rstrip("/"))
    answer = await http.get(url.copy_with(raw_path=path.encode()))
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("value", [b"\xb2", b"\xff/\xff", b"9" * 2000, b"1/\xe9"], ids=repr)
async def test_odd_event_ids_are_no_errors_of_ours(
    stack: Stack, client: LoomOSClient, http: httpx.AsyncClient, value: bytes
) -> None:
    job = await client.submit_job(PROBE)
    for path in (f"/api/v1/jobs/{job.job_id}/events", "/api/v1/events?limit=1"):
        answer = await http.get(path, headers={"Last-Event-ID": value})
        assert answer.status_code in (200, 422), answer.text


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        (b"{", "$", "not JSON at line 1, column 2"),
        (b'{"a":\n "b}', "$", "line 2"),
        (b"\xff", "$", "not UTF-8 at byte 0"),
        (b'{"metadata": {"name": "\\ud800"}}', "metadata.name", "surrogate"),
        (b'{"\\udfff": 1}', "$", "surrogate"),
        (b"[" * 90_000, "$", "nested deeper"),
        (b"[" * 110_000, "$", "has more than 100,000 values"),
        (b'{"a": ' * 70 + b"1" + b"}" * 70, "a.a", "nested deeper"),
        (b'{"spec": {"priority": NaN}}', "$", "NaN is no number"),
        (b'{"spec": {"priority": 1e400}}', "spec.priority", "larger than any"),
        (b'{"spec": ' + b"9" * 5000 + b"}", "$", "not JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_body_that_cannot_be_written_again_names_the_place(
    http: httpx.AsyncClient, body: bytes, path: str, words: str
) -> None:
    for url in ("/api/v1/jobs", "/api/v1/experiments", "/api/v1/models"):
        answer = await http.post(url, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert error["path"].startswith(path) and words in error["message"], error


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": 5},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 3000},
        {"sub": "\ud800"},
        {"sub": "a\x00b"},
        {"scope": 7},
        {"scope": None},
        {"scope": ["admin"]},
        {"exp": 1e400},
        {"exp": "never"},
        {"nbf": []},
        {"iat": {}},
        {"iss": ["loomos"]},
        {"aud": 3},
    ],
    ids=str,
)
async def test_tokens_with_odd_claims_are_not_ours(
    stack: Stack, http: httpx.AsyncClient, claims: dict[str, Any]
) -> None:
    whole = {"iss": "loomos", "sub": "eve", "scope": "admin", "exp": 4_000_000_000, **claims}
    key = read_key(stack.folder.signing_key_file)
    payload = json.dumps(whole).encode()
    token = jwt.api_jws.encode(payload, key, algorithm="HS256")
    answer = await http.get("/api/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401, answer.text


async def test_a_misspelt_field_of_any_kind_is_answered_with_that_kinds_fields(
    http: httpx.AsyncClient,
) -> None:
    async def message(method: str, path: str, body: Any) -> str:
        answer = await http.request(method, path, json=body)
        assert answer.status_code == 422, answer.text
        return str(answer.json()["errors"])

    def document(kind: str, **fields: Any) -> dict[str, Any]:
        return {"apiVersion": "loomos.ai/v1", "kind": kind, "metadata": {"name": "x"}, **fields}

    for method, path, body, wanted in [
        (
            "POST",
            "/api/v1/experiments",
            document("Experiment", spec={"paralelism": 2}),
            "parallelism",
        ),
        ("POST", "/api/v1/campaigns", document("RLCampaign", spec={"memberz": []}), "members"),
        ("POST", "/api/v1/verifications", document("VerificationSuite", modle="a"), "model"),
        ("POST", "/api/v1/rollouts", document("CanaryRollout", spec={"endpont": "a"}), "endpoint"),
        ("POST", "/api/v1/schedules", document("ContinualLearning", spec={"crn": "a"}), "cron"),
        ("PUT", "/api/v1/models/a@b", {"descripton": "a"}, "description"),
        ("PUT", "/api/v1/endpoints/a", {"modell": "a"}, "model"),
        ("PUT", "/api/v1/scheduler/config", {"polcy": "a"}, "policy"),
        ("POST", "/api/v1/jobs", document("TrainingJob", spec={"algoritm": "sft"}), "algorithm"),
    ]:
        assert f"did you mean {wanted}?" in await message(method, path, body), path
    said = await message("PUT", "/api/v1/models/a@b", {"zzz": 1})
    assert "known here: aliases, description, tags" in said


async def test_a_document_larger_than_a_workflow_takes_is_too_large(
    http: httpx.AsyncClient,
) -> None:
    """Within a body's limit, but beyond it once its numbers are written out."""
    members = ", ".join('{"a": [' + ",".join(["1e15"] * 1000) + "]}" for _ in range(100))
    body = (
        '{"apiVersion": "loomos.ai/v1", "kind": "TrainingJob", "metadata": {"name": "big"},'
        '"spec": {"algorithm": "sft", "model": {"base_model": "init:llama", "tokenizer": "byte",'
        '"fine_tuning_config": {"max_steps": 1}, "config": {"x": [' + members + "]}},"
        '"data": {"training_dataset": "/nowhere"}}}'
    )
    answer = await http.post(
        "/api/v1/jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (413, 422), answer.text
    assert "1,048,576" in answer.text or answer.status_code == 422


async def test_the_pages_of_the_api_need_no_network(stack: Stack) -> None:
    base = stack.state.settings["cluster"]["endpoint"]
    async with httpx.AsyncClient(base_url=base, timeout=60) as client:
        page = (await client.get("/docs")).text
        assert "http://" not in page and "https://" not in page
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert f"/static-offline-docs/{name}" in page
            asset = await client.get(f"/static-offline-docs/{name}")
            assert asset.status_code == 200 and len(asset.content) > 100_000
        assert (await client.get("/openapi.json")).status_code == 200
