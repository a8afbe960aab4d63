"""Endpoints, and requests to the models behind them, passed on to the servers that hold them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from api.context import Gateway, Parts, Reader, Submitter
from api.problems import problem_responses
from loomos.client.delivery_models import (
    EndpointDetail,
    EndpointList,
    InferenceAnswer,
    InferenceRequest,
)
from loomos.errors import Conflict, InvalidInput, LoomOSError, NotFound, Overloaded, Unavailable
from loomos.jobs.serving import EndpointSpec
from loomos.serving.servers import is_alive, read_servers
from loomos.serving.table import read_route

router = APIRouter(tags=["serving"])

EndpointName = Annotated[str, Path(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*$")]
PASSED_ON = ("content-type", "authorization", "x-loomos-user", "accept")
PASSED_BACK = ("content-type", "retry-after", "x-loomos-version", "www-authenticate")
TIMEOUT = httpx.Timeout(600.0, connect=2.0)


async def describe_endpoint(parts: Gateway, name: str) -> EndpointDetail:
    """An endpoint, as workflow, route row and servers tell."""
    status = await parts.delivery.endpoint(name)
    route = await asyncio.to_thread(read_route, parts.store, name)
    servers = await asyncio.to_thread(read_servers, parts.store)
    return EndpointDetail(
        name=name,
        state=status.state,
        message=status.message,
        spec=route.spec,
        route=route,
        servers=[s for s in servers if s.server_id in route.replicas and is_alive(s)],
    )


@router.get("/api/v1/endpoints", responses=problem_responses())
async def list_endpoints(parts: Parts, who: Reader) -> EndpointList:
    """Every endpoint."""
    names = await parts.delivery.endpoint_names()
    found = await asyncio.gather(
        *(describe_endpoint(parts, name) for name in names), return_exceptions=True
    )
    endpoints: list[EndpointDetail] = []
    for item in found:
        if isinstance(item, EndpointDetail):
            endpoints.append(item)
        elif not isinstance(item, NotFound):  # deleted in between
            raise item
    return EndpointList(endpoints=endpoints)


@router.get("/api/v1/endpoints/{name}", responses=problem_responses(404))
async def get_endpoint(name: EndpointName, parts: Parts, who: Reader) -> EndpointDetail:
    """An endpoint with its route row and servers."""
    return await describe_endpoint(parts, name)


@router.put("/api/v1/endpoints/{name}", responses=problem_responses(404, 409))
async def configure_endpoint(
    name: EndpointName, spec: EndpointSpec, parts: Parts, who: Submitter
) -> EndpointDetail:
    """Make an endpoint, or change it."""
    await parts.delivery.deploy(name, spec, who.subject)
    return await describe_endpoint(parts, name)


@router.delete("/api/v1/endpoints/{name}", status_code=204, responses=problem_responses(404, 409))
async def delete_endpoint(name: EndpointName, parts: Parts, who: Submitter) -> None:
    """Delete an endpoint; its models stay in the registry."""
    await parts.delivery.delete_endpoint(name)


# --- requests -----------------------------------------------------------------------------------


async def ask(
    parts: Gateway, request: Request, endpoint: str, body: InferenceRequest
) -> InferenceAnswer:
    """One question in the form of `POST /models/{id}/inference`.

    Raises:
        InvalidInput: the input is neither a text nor a conversation.
        Overloaded: the servers have too many requests waiting.
        Unavailable: no server can answer now.
    """
    given = set(body.input)
    if given not in ({"text"}, {"messages"}):
        raise InvalidInput('input: give {"text": ...} or {"messages": [...]}')
    content: dict[str, Any] = {"model": endpoint}
    for name in ("max_tokens", "temperature", "user"):
        if (value := getattr(body, name)) is not None:
            content[name] = value
    is_chat = "messages" in given
    content |= {"messages": body.input["messages"]} if is_chat else {"prompt": body.input["text"]}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    headers = {"Authorization": request.headers.get("Authorization", "")}
    answer = await _send(request, parts, endpoint, "POST", path, json=content, headers=headers)
    await answer.aread()
    if answer.status_code >= 400:
        raise _refused(answer)
    found = answer.json()
    choice = found["choices"][0]
    return InferenceAnswer(
        id=found["id"],
        endpoint=endpoint,
        version=found.get("system_fingerprint") or "",
        output={"text": choice["message"]["content"] if is_chat else choice["text"]},
        usage=found["usage"],
    )


def _refused(answer: httpx.Response) -> LoomOSError:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.text[:300]
    kinds: dict[int, type[LoomOSError]] = {
        404: NotFound,
        409: Conflict,
        429: Overloaded,
        503: Unavailable,
    }
    return kinds.get(answer.status_code, InvalidInput)(message)


@router.get("/v1/models", include_in_schema=False)
async def openai_models(parts: Parts, who: Reader) -> dict[str, Any]:
    """Endpoints, in OpenAI's form."""
    names = await parts.delivery.endpoint_names()
    data = [{"id": n, "object": "model", "created": 0, "owned_by": "loomos"} for n in names]
    return {"object": "list", "data": data}


@router.api_route(
    "/v1/{path:path}", methods=["GET", "POST"], include_in_schema=False, response_model=None
)
async def openai(path: str, request: Request, parts: Parts, who: Reader) -> Response:
    """Pass a request in OpenAI's form on to a server that holds the model."""
    body = await request.body()
    endpoint = _model_of(path, body)
    headers = {k: v for k, v in request.headers.items() if k.lower() in PASSED_ON}
    try:
        answer = await _send(
            request,
            parts,
            endpoint,
            request.method,
            f"/v1/{path}",
            content=body,
            headers=headers,
        )
    except LoomOSError as error:
        return _openai_error(error)
    kept = {k: v for k, v in answer.headers.items() if k.lower() in PASSED_BACK}

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            await answer.aclose()

    return StreamingResponse(pieces(), status_code=answer.status_code, headers=kept)


def _model_of(path: str, body: bytes) -> str:
    """The endpoint that a request names; empty if it names none."""
    if path.startswith("models/"):
        return path.removeprefix("models/")
    try:
        content = json.loads(body or b"{}")
    except ValueError:
        return ""
    model = content.get("model", "") if isinstance(content, dict) else ""
    return str(model).partition("@")[0]


def _openai_error(error: LoomOSError) -> JSONResponse:
    body = {"message": str(error), "type": "server_error", "param": None, "code": None}
    if error.status < 500:
        body["type"] = "invalid_request_error"
    if isinstance(error, NotFound):
        body |= {"param": "model", "code": "model_not_found"}
    headers = {"Retry-After": "1"} if error.retryable else {}
    return JSONResponse({"error": body}, status_code=error.status, headers=headers)


async def _send(
    request: Request, parts: Gateway, endpoint: str, method: str, path: str, **options: Any
) -> httpx.Response:
    """Send to the server with the shortest queue; if it cannot be reached, to the next.

    Only a request that no server has begun to answer is sent again.
    """
    http: httpx.AsyncClient = request.app.state.http
    servers = await parts.traffic.holders(endpoint)
    reason = "no server holds it yet"
    for server in servers:
        message = http.build_request(method, server.url + path, timeout=TIMEOUT, **options)
        try:
            answer = await http.send(message, stream=True)
        except httpx.ConnectError as error:
            reason = f"{server.server_id} cannot be reached ({error})"
            continue
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{server.server_id} broke off: {str(error) or type(error).__name__}"
            ) from error
        is_last = server is servers[-1]
        if answer.status_code in (404, 429, 503) and not is_last:
            await answer.aread()
            await answer.aclose()
            continue
        return answer
    raise Unavailable(f"endpoint {endpoint!r}: {reason}; try again")
