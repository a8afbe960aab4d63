"""The one place where errors become RFC 9457 problem+json."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from loomos.client.models import Problem, ProblemError
from loomos.errors import InvalidInput, InvalidManifest, LoomOSError, Overloaded, Unavailable
from loomos.manifest import field_errors, model_in
from loomos.serving.api_errors import ApiError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the problems that a route may answer."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": "Problem", "model": Problem, "content": {MEDIA_TYPE: schema}}
        for status in (400, 401, 403, 408, 413, 422, 503, *statuses)
    }


def problem(error: LoomOSError) -> JSONResponse:
    """The response for an error of ours."""
    fields = error.errors if isinstance(error, InvalidInput) else []
    body = Problem(
        title=error.title,
        status=error.status,
        detail=str(error),
        errors=[ProblemError(path=f.path, message=f.message) for f in fields],
    )
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable | Overloaded):
        headers["Retry-After"] = "1"
    return JSONResponse(
        body.model_dump(), status_code=error.status, media_type=MEDIA_TYPE, headers=headers
    )


def refusal(path: str, error: LoomOSError) -> JSONResponse:
    """The response for an error of ours, in the words of the API that the path belongs to."""
    return ApiError.of(error).response() if path.startswith("/v1/") else problem(error)


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""

    @app.exception_handler(LoomOSError)
    async def ours(request: Request, error: LoomOSError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(_invalid(error, _body_model(request)))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        body = Problem(title=title, status=error.status_code, detail=str(error.detail))
        return JSONResponse(
            body.model_dump(),
            status_code=error.status_code,
            media_type=MEDIA_TYPE,
            headers=dict(error.headers or {}),
        )

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.exception("unforeseen", exc_info=error)
        body = Problem(
            title="Internal error", status=500, detail="The gateway's log says more. Please report."
        )
        return JSONResponse(body.model_dump(), status_code=500, media_type=MEDIA_TYPE)


def _body_model(request: Request) -> type[BaseModel]:
    """What the body of this route is; its fields are those to name in errors."""
    field = getattr(request.scope.get("route"), "body_field", None)
    found = None if field is None else model_in(field.field_info.annotation)
    return found or BaseModel


def _invalid(error: RequestValidationError, model: type[BaseModel]) -> InvalidInput:
    """FastAPI's findings in our words, with did-you-means."""
    items = [{**item, "loc": tuple(item["loc"])[1:] or ("$",)} for item in error.errors()]
    fields = field_errors(items, model, error.body)
    if any(item["loc"][0] == "body" for item in error.errors()):
        return InvalidManifest(fields, "request")
    return _Unprocessable("request: " + "; ".join(map(str, fields)), fields)


class _Unprocessable(InvalidInput):
    status = 422
    title = "Invalid request"
