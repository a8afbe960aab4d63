"""What a member must do to count as healthy.

A check asks the member to do what it is for, and carries nothing secret. It is made only once the
kernel has shown that the member's own process listens at its port: whoever else sits there is never
asked. A check says what is wrong and never raises, whatever is answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

import httpx
import psutil

from loomos.security.proof import PATH as PROOF_PATH
from loomos.security.proof import is_proof, make_challenge
from loomos.storage.layout import HEALTH_PLACES, health_key

CHECK_TIMEOUT_S = 3.0
PLACES_AT_ONCE = 4
"""Folders of the store that one check looks at."""
SILENT = "does not answer"
_MOST_BYTES = 256 * 1024
"""More of an answer is not read."""

Check = Callable[[httpx.AsyncClient], Awaitable[str]]
"""Says what is wrong; nothing if nothing is."""


async def ask(check: Check, client: httpx.AsyncClient) -> str:
    """Make a check; says what is wrong, and nothing if the member is healthy."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check(client)
    except (TimeoutError, httpx.TimeoutException):
        return SILENT
    except httpx.HTTPError as error:
        return f"cannot be reached: {str(error) or type(error).__name__}"
    except Exception as error:
        # Strangers answer what they like; the stack must go on.
        return f"answers nonsense: {type(error).__name__}: {error}"[:200]


def stranger_at(pid: int, ports: tuple[int, ...]) -> str | None:
    """What is wrong while not all ports are listened at by this process; None if all are."""
    try:
        own = {
            connection.laddr.port
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
    except psutil.AccessDenied:
        return None  # A system that does not show it; the gateway proves itself besides.
    except psutil.Error:
        return "has just ended"
    missing = [port for port in ports if port not in own]
    return f"does not listen at port {missing[0]} yet, or another process does" if missing else None


def answers(url: str) -> Check:
    """It answers a GET with success."""

    async def check(client: httpx.AsyncClient) -> str:
        status, _ = await _send(client, "GET", url)
        return "" if status == 200 else f"answers {status}"

    return check


def proves_itself(endpoint: str, key: str) -> Check:
    """It knows the stack's secret. No token is sent."""

    async def check(client: httpx.AsyncClient) -> str:
        challenge = make_challenge()
        status, body = await _send(client, "GET", f"{endpoint}{PROOF_PATH}?challenge={challenge}")
        if status == 200:
            answer = json.loads(body)
            if isinstance(answer, dict) and is_proof(key, endpoint, challenge, answer.get("proof")):
                return ""
        return f"another process answers at {endpoint}"

    return check


def stores(url: str, bucket: str, access_key: str, secret_key: str) -> Check:
    """An S3 server takes small objects, gives them back, and lists them.

    Each goes to another folder, for a server may spread folders over several databases, of which
    one alone can be broken after a full disk. A folder that failed is tried until it works.
    """
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    credentials = Credentials(access_key, secret_key)
    place = 0

    async def check(client: httpx.AsyncClient) -> str:
        nonlocal place
        for _ in range(PLACES_AT_ONCE):
            if problem := await check_at(health_key(place), client):
                return problem
            place = (place + 1) % HEALTH_PLACES
        return ""

    async def check_at(key: str, client: httpx.AsyncClient) -> str:
        async def call(method: str, path: str, data: bytes = b"") -> tuple[int, bytes]:
            digest = hashlib.sha256(data).hexdigest()
            target = f"{url}/{bucket}{path}"
            headers = {"x-amz-content-sha256": digest}
            request = AWSRequest(method=method, url=target, data=data, headers=headers)
            S3SigV4Auth(credentials, "s3", "us-east-1").add_auth(request)
            return await _send(client, method, target, data, dict(request.headers.items()))

        word = secrets.token_hex(8).encode()
        status, _ = await call("PUT", f"/{key}", word)
        if status != 200:
            return f"does not store: PUT answers {status}"
        status, body = await call("GET", f"/{key}")
        if status != 200 or body != word:
            return f"does not give back what it stored: GET answers {status}"
        folder, _, name = key.rpartition("/")
        status, body = await call("GET", f"?list-type=2&prefix={quote(folder + '/', safe='')}")
        if status != 200 or name.encode() not in body:
            return f"does not list what it stored: LIST answers {status}"
        return ""

    return check


async def _send(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    data: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and the beginning of the body."""
    body = b""
    async with client.stream(method, url, content=data or None, headers=headers) as response:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > _MOST_BYTES:
                break
        return response.status_code, body
