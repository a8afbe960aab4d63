"""Requests to a gateway: sent again where that does no harm, errors as ours, streams that go on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from loomos.errors import (
    Conflict,
    FieldError,
    Forbidden,
    InvalidInput,
    LoomOSError,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from loomos.security.proof import PATH as PROOF_PATH
from loomos.security.proof import is_proof, make_challenge, read_stack_key
from loomos.settings import load_settings

RETRY_DELAY_S = 0.3
PIECE_BYTES = 1024 * 1024
"""Files travel in pieces of so many bytes, and are never in memory as a whole."""
PROVEN_FOR_S = 5.0
"""After so long, and after every failure, a stack's gateway proves itself again."""
API = "/api/v1"

ModelT = TypeVar("ModelT", bound=BaseModel)

_ERRORS: dict[int, type[LoomOSError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
    429: Overloaded,
    503: Unavailable,
}


class Transport:
    """A connection to a gateway.

    Args:
        endpoint: URL of the gateway. Default: from the settings.
        auth_token: bearer token. Default: from the settings.
        timeout: seconds a request may take. Default: from the settings.
        transport: for tests.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        auth_token: str | None = None,
        *,
        timeout: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = load_settings()
        self.endpoint = (endpoint or settings.cluster.endpoint).rstrip("/")
        # What belongs to the stack of the settings is for its own gateway only. Who names both
        # says where the token goes: another stack may be where that one was.
        is_named = endpoint is not None and auth_token is not None
        is_stacks = not is_named and self.endpoint == settings.cluster.endpoint.rstrip("/")
        self._stack_key = read_stack_key(settings.auth.stack_key_file) if is_stacks else None
        file = settings.auth.stack_key_file if is_stacks else None
        self._stack = file.parent.parent if file else None
        self._proven_at: float | None = None
        token = auth_token or settings.token(to_stack=is_stacks)
        self._retries = settings.cluster.retries
        self._job_defaults = settings.defaults.job
        self._http = httpx.AsyncClient(
            base_url=self.endpoint,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout or settings.cluster.timeout,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def call(self, method: str, path: str, model: type[ModelT], **options: Any) -> ModelT:
        """Send a request to a path of the API and read the answer as `model`."""
        response = await self.request(method, path, **options)
        return model.model_validate_json(response.content)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, again while the gateway is away and sending twice does no harm.

        `content` may be a function that makes the body, piece by piece, anew for every try.
        """
        make: Callable[[], AsyncIterator[bytes]] | None = None
        if callable(options.get("content")):
            make = options["content"]
        safe = method in ("GET", "HEAD") or "Idempotency-Key" in options.get("headers", {})
        attempt = 0
        while True:
            try:
                await self._know_gateway()
                if make is not None:
                    options["content"] = make()
                response = await self._http.request(method, API + path, **options)
                if response.status_code != 503 or attempt >= self._retries or not safe:
                    await _raise_for(response)
                    return response
            except httpx.ConnectError as error:
                if attempt >= self._retries:
                    raise self._unreachable(error) from error
            except httpx.HTTPError as error:
                if attempt >= self._retries or not safe:
                    raise self._unreachable(error) from error
            attempt += 1
            self._proven_at = None
            await asyncio.sleep(RETRY_DELAY_S * 2**attempt)

    async def send_file(self, path: str, file: Path, *, key: str, timeout_s: float) -> None:
        """PUT a file's content, piece by piece; sending it twice must do no harm.

        Args:
            path: of the API.
            file: what to send.
            key: names the content.
            timeout_s: how long a piece, and the answer, may take.
        """

        async def pieces() -> AsyncIterator[bytes]:
            with file.open("rb") as opened:
                while piece := await asyncio.to_thread(opened.read, PIECE_BYTES):
                    yield piece

        size = (await asyncio.to_thread(file.stat)).st_size
        headers = {"Content-Length": str(size), "Idempotency-Key": key}
        await self.request("PUT", path, content=pieces, headers=headers, timeout=timeout_s)

    async def _know_gateway(self) -> None:
        """Have the gateway of an embedded stack prove itself before a token goes there.

        Raises:
            Unavailable: another process answers at its address.
        """
        if self._stack_key is None:
            return
        now = time.monotonic()
        if self._proven_at is not None and now - self._proven_at < PROVEN_FOR_S:
            return
        challenge = make_challenge()
        asking = self._http.build_request("GET", PROOF_PATH, params={"challenge": challenge})
        asking.headers.pop("Authorization", None)
        answer = await self._http.send(asking)
        try:
            proof = answer.json()["proof"]
        except (ValueError, KeyError, TypeError, RecursionError):
            proof = None
        if not is_proof(self._stack_key, self.endpoint, challenge, proof):
            raise Unavailable(
                f"what answers at {self.endpoint} is not this stack's gateway, so no token was "
                "sent; see `loomos status`, or restart with `loomos down` and `loomos up`"
            )
        self._proven_at = now

    def _unreachable(self, error: httpx.HTTPError) -> Unavailable:
        reason = str(error) or type(error).__name__
        start = (
            f"start its stack with `loomos up --dir {self._stack}`"
            if self._stack
            else ("start one with `loomos up`")
        )
        return Unavailable(
            f"gateway at {self.endpoint} cannot be reached ({reason}); {start}, set "
            f"cluster.endpoint or choose another context (`loomos context list`)"
        )

    async def stream(self, path: str, params: Any = None) -> AsyncIterator[tuple[str, Any]]:
        """Server-sent events, going on after a cut connection, until the stream's own end."""
        last_id: str | None = None
        failures = 0
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            try:
                await self._know_gateway()
                async with self._http.stream(
                    "GET", API + path, params=params, headers=headers, timeout=60
                ) as response:
                    await _raise_for(response)
                    async for kind, data, event_id in _parse_events(response):
                        failures = 0
                        last_id = event_id or last_id
                        if kind == "end":
                            return
                        yield kind, data
            except (httpx.HTTPError, Unavailable) as error:
                failures += 1
                self._proven_at = None
                if failures > 60:
                    if isinstance(error, Unavailable):
                        raise
                    raise self._unreachable(error) from error
            await asyncio.sleep(min(5.0, RETRY_DELAY_S * 2 ** min(failures, 4)))

    async def stream_answer(
        self, endpoint: str, asked: dict[str, Any], options: dict[str, Any], timeout_s: float
    ) -> AsyncIterator[str]:
        """Text of a model's answer, piece by piece, over OpenAI's protocol."""
        is_chat = "messages" in asked
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        content = {"messages": asked["messages"]} if is_chat else {"prompt": asked["text"]}
        body = {"model": endpoint, "stream": True, **content, **options}
        try:
            async with self._http.stream("POST", path, json=body, timeout=timeout_s) as response:
                await _raise_for(response)
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    event = json.loads(data)
                    if "error" in event:
                        raise Unavailable(str(event["error"].get("message", event["error"])))
                    for choice in event.get("choices", ()):
                        piece = choice["delta"].get("content") if is_chat else choice.get("text")
                        if piece:
                            yield piece
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def download(self, path: str, sha256: str, target: Path) -> None:
        """Write what the gateway has at `path` into a file, once its SHA-256 has been checked.

        Raises:
            Unavailable: it arrived damaged, or not at all.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        digest = hashlib.sha256()
        try:
            await self._know_gateway()
            async with self._http.stream("GET", API + path) as answer:
                await _raise_for(answer)
                with partial.open("wb") as file:
                    async for piece in answer.aiter_bytes():
                        digest.update(piece)
                        file.write(piece)
            if digest.hexdigest() != sha256:
                raise Unavailable(f"{target.name} arrived damaged; download it again")
            partial.replace(target)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            partial.unlink(missing_ok=True)


async def _parse_events(response: httpx.Response) -> AsyncIterator[tuple[str, Any, str | None]]:
    """(event, data, id) of each server-sent event."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield fields.get("event", "message"), json.loads(fields["data"]), fields.get("id")
            fields = {}


async def _raise_for(response: httpx.Response) -> None:
    """Turn a problem+json answer into the error that it was."""
    if response.is_success:
        return
    await response.aread()
    try:
        problem = response.json()
        detail, fields = problem.get("detail", ""), problem.get("errors", [])
        if isinstance(problem.get("error"), dict):  # in OpenAI's words
            detail = problem["error"].get("message", "")
    except ValueError:
        detail, fields = response.text[:200] or response.reason_phrase, []
    kind = _ERRORS.get(response.status_code, LoomOSError)
    if issubclass(kind, InvalidInput):
        raise kind(detail, [FieldError(path=f["path"], message=f["message"]) for f in fields])
    raise kind(detail or f"the gateway answered {response.status_code}")
