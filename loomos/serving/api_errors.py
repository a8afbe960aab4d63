"""What every face of OpenAI's protocol shares: how errors look, and how bodies are read.

The gateway's `/v1` and a serving process stand on it; it needs no torch. A body is read by one
strict decoder: bounded in size, depth, number of values and time, every number finite, every text
valid Unicode. What is accepted here can be written down again, hashed, logged and passed on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from loomos.errors import Forbidden, LoomOSError, NotFound, Overloaded, Unauthenticated

log = logging.getLogger(__name__)

LARGEST_BODY = 16 * 1024 * 1024
"""Most bytes of a request; a conversation of a million tokens takes some four million."""
MOST_VALUES = 2**20
"""Values in a request's body: a prompt of a million tokens has as many."""
MOST_MEMBERS = 200_000
"""Lists, objects and members of objects in a request's body, each of which takes memory many times
its length; ten thousand turns have some 70,000."""
BODY_S = 60.0
"""How long a client may take to send a body."""

ModelT = TypeVar("ModelT", bound=BaseModel)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES: dict[type[LoomOSError], dict[str, str]] = {
    Unauthenticated: {"code": "invalid_api_key"},
    Forbidden: {"code": "insufficient_permissions"},
    NotFound: {"code": "model_not_found", "param": "model"},
    Overloaded: {"code": "overloaded"},
}


class ApiError(Exception):
    """An error as OpenAI's clients read it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, error: LoomOSError) -> ApiError:
        """An error of ours in OpenAI's form."""
        more = _CODES.get(type(error), {})
        retry = 1 if error.retryable else None
        return cls(error.status, str(error), retry_after_s=retry, **more)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        other = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, other),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The HTTP response."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def install(app: FastAPI) -> None:
    """Make every error of the app one that OpenAI's clients read."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(LoomOSError)
    async def ours(request: Request, error: LoomOSError) -> JSONResponse:
        return ApiError.of(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid_request(list(error.errors())).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.scope['path']}"
        message = {404: f"there is no {where}", 405: f"{where} is not allowed"}
        return ApiError(error.status_code, message.get(error.status_code, error.detail)).response()

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.exception("unforeseen", exc_info=error)
        return ApiError(500, "internal error; the log says more, please report it").response()


def invalid_request(errors: list[Any]) -> ApiError:
    """Pydantic's findings as one error."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    param = where.split(".")[0]
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where}: {message}", param=None if param == "body" else param)


async def read_body(request: Request) -> bytes:
    """A request's body.

    Raises:
        ApiError: 413 when it is too large, 408 when it takes too long to come.
    """
    too_large = ApiError(
        413, f"the body has more than {LARGEST_BODY} bytes", code="request_too_large"
    )
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared[:20]) > LARGEST_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > LARGEST_BODY:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the body ended early") from None
    return bytes(body)


def decode(body: bytes) -> Any:
    """JSON, strictly.

    Raises:
        ApiError: it is no JSON, too deep, has too many values, or numbers or texts that nobody
            could write down.
    """
    _check_count(body)
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON that can be used: {error}") from None
    _check_finite(content)
    return content


def _check_count(body: bytes) -> None:
    """Refuse a body of which reading would take long, and memory many times its size.

    The marks between values are counted, which takes milliseconds; those in texts count only where
    they could not all be between values.
    """
    if _is_modest(body):
        return
    # Without escapes every other quote ends a text. Of an odd run of backslashes the last is left.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    most_texts = MOST_VALUES + MOST_MEMBERS
    if plain.count(b'"') > 2 * most_texts or not _is_modest(b"".join(plain.split(b'"')[::2])):
        raise ApiError(
            400,
            f"the body has more than {MOST_VALUES:,} values, or {MOST_MEMBERS:,} lists, objects "
            "and members of objects; send several requests",
        )


def _is_modest(marks: bytes) -> bool:
    members = marks.count(b"[") + marks.count(b"{") + marks.count(b":")
    return members <= MOST_MEMBERS and marks.count(b",") <= MOST_VALUES


def _check_finite(content: Any) -> None:
    """Refuse numbers such as 1e400; the decoder has bounded the depth."""
    if isinstance(content, float) and not math.isfinite(content):
        raise ApiError(400, "the body has a number beyond all floats; send finite numbers")
    if isinstance(content, dict):
        content = content.values()
    elif not isinstance(content, list):
        return
    for item in content:
        if isinstance(item, float | dict | list):
            _check_finite(item)


def body_of(model: type[ModelT]) -> Callable[[Request], Coroutine[Any, Any, ModelT]]:
    """Dependency that reads a request's body as `model`."""

    async def read(request: Request) -> ModelT:
        content = decode(await read_body(request))
        try:
            return model.model_validate(content)
        except ValidationError as error:
            raise invalid_request(
                error.errors(include_context=False, include_input=False)
            ) from None

    return read
