"""The first thing a request meets: who asks, where to, how much and how fast, before it is read.

FastAPI reads a body before it looks at who sends it. So tokens are checked here, and a body is
handed on only as far as its route takes one, and only while it keeps coming.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from urllib.parse import unquote_plus

from fastapi import HTTPException, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loomos.errors import InvalidInput, LoomOSError, TooLarge, Unauthenticated
from loomos.security.tokens import Identity, verify

PUBLIC = (
    "/api/v1/health",
    "/api/v1/ready",
    "/api/v1/proof",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
)
PUBLIC_FOLDERS = ("/static-offline-docs/",)
"""What everybody may see."""

KIB = 1024
DOCUMENT_BYTES = 1024 * KIB
CONVERSATION_BYTES = 16 * 1024 * KIB
LIMITS: tuple[tuple[re.Pattern[str], int | None], ...] = (
    (re.compile(r"/api/v1/blobs/.*"), None),
    (re.compile(r"/v1/.*|/api/v1/models/[^/]+/inference"), CONVERSATION_BYTES),
)
"""Most bytes of a body, by path; None where the route reads it piece by piece. Else a document."""

STALL_S = 30.0
"""How long nothing may come of a body that is not complete."""
SLOWEST = 16 * KIB
"""Bytes a second that a body must come in on the whole, after `STALL_S`."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CLIMBING = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\]|$)")

Key = Callable[[Scope], str]
Refusal = Callable[[Scope, LoomOSError], Response]


class Edge:
    """ASGI middleware that lets only sound requests of known people through.

    Args:
        app: what comes next.
        key: gives the key that tokens are signed with.
        refusal: makes the answer to a request that is refused.
    """

    def __init__(self, app: ASGIApp, key: Key, refusal: Refusal) -> None:
        self._app, self._key, self._refusal = app, key, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            check_target(scope)
            if not is_public(scope["path"]):
                scope["loomos.identity"] = _who(scope, self._key(scope))
            body = _Body(scope, receive)
        except LoomOSError as error:
            await self._refusal(scope, error)(scope, receive, send)
            return
        await self._app(scope, body.receive, send)


def is_public(path: str) -> bool:
    """Whether a path needs no token."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def check_target(scope: Scope) -> None:
    """Refuse what no route means, and what a server or a store behind it might misunderstand.

    Raises:
        InvalidInput: control characters in path or query, or a path that climbs.
    """
    path = scope["path"]
    query = unquote_plus(scope["query_string"].decode("latin-1"), errors="replace")
    if _CONTROL.search(path) or _CONTROL.search(query):
        raise InvalidInput("the URL holds control characters, such as %00; leave them out")
    if _CLIMBING.search(path):
        raise InvalidInput("the path holds . or .. as a part; write out where it leads")


def body_limit(path: str) -> int | None:
    """Most bytes of the body of a request to this path."""
    for pattern, limit in LIMITS:
        if pattern.fullmatch(path):
            return limit
    return DOCUMENT_BYTES


def _who(scope: Scope, key: str) -> Identity:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = given[0].decode("latin-1").partition(" ") if given else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("send a bearer token; `loomos auth login` stores one")
    return verify(key, token.strip())


class _Body:
    """A request's body, as far as it may be read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._limit = body_limit(scope["path"])
        self._size = 0
        self._is_complete = False
        self._began = asyncio.get_running_loop().time()
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and self._is_over(int(value[:20])):
                raise self._too_large()

    def _is_over(self, size: int) -> bool:
        return self._limit is not None and size > self._limit

    def _too_large(self) -> TooLarge:
        assert self._limit is not None
        return TooLarge(f"the body is larger than the {self._limit:,} bytes that go to this path")

    async def receive(self) -> Message:
        """The next piece.

        Raises:
            HTTPException: it is too large (413) or comes too slowly (408).
        """
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout(STALL_S):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing of the body came for {STALL_S:.0f} s") from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
            if self._is_over(self._size):
                raise HTTPException(413, str(self._too_large()))
            passed = asyncio.get_running_loop().time() - self._began
            if not self._is_complete and self._size < SLOWEST * (passed - STALL_S):
                raise HTTPException(
                    408, f"the body comes in slower than {SLOWEST:,} bytes a second"
                )
        return message
