"""Endpoints, and requests to the models behind them, passed on to the servers that hold them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Path, Request

from api.bodies import Route
from api.context import Gateway, Parts, Reader, Submitter
from api.lists import members
from api.named_in_service import check_detectors, check_remote
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
from loomos.serving.table import close_route, read_route

router = APIRouter(route_class=Route, tags=["serving"])

EndpointName = Annotated[str, Path(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*$")]
TIMEOUT = httpx.Timeout(600.0, connect=2.0)


async def describe_endpoint(parts: Gateway, name: str) -> EndpointDetail:
    """An endpoint, as workflow, route row and servers tell."""
    status = await parts.delivery.endpoint(name)
    route, why = status.route, status.partial
    try:
        route = await asyncio.to_thread(read_route, parts.store, name)
    except NotFound:
        if not why:  # deleted in between; the workflow itself would have written a row
            raise
    except (Unavailable, ValueError) as error:
        why = why or f"its row cannot be read: {str(error).splitlines()[0]}"
    servers = await asyncio.to_thread(read_servers, parts.store) if route else []
    return EndpointDetail(
        name=name,
        state=status.state,
        message=status.message,
        spec=route.spec if route else status.spec,
        route=route,
        servers=[s for s in servers if route and s.server_id in route.replicas and is_alive(s)],
        partial=why,
    )


@router.get("/api/v1/endpoints", responses=problem_responses())
async def list_endpoints(parts: Parts, who: Reader) -> EndpointList:
    """Every endpoint."""
    names = await parts.delivery.endpoint_names()
    return EndpointList(endpoints=await members(describe_endpoint(parts, name) for name in names))


@router.get("/api/v1/endpoints/{name}", responses=problem_responses(404))
async def get_endpoint(name: EndpointName, parts: Parts, who: Reader) -> EndpointDetail:
    """An endpoint with its route row and servers."""
    return await describe_endpoint(parts, name)


@router.put("/api/v1/endpoints/{name}", responses=problem_responses(404, 409))
async def configure_endpoint(
    name: EndpointName, spec: EndpointSpec, parts: Parts, who: Submitter
) -> EndpointDetail:
    """Make an endpoint, or change it."""
    check_remote(spec.remote, parts.remote_keys, "remote")
    check_detectors(spec.detectors, "detectors")
    await parts.delivery.deploy(name, spec, who.subject)
    return await describe_endpoint(parts, name)


@router.delete("/api/v1/endpoints/{name}", status_code=204, responses=problem_responses(404, 409))
async def delete_endpoint(name: EndpointName, parts: Parts, who: Submitter) -> None:
    """Delete an endpoint; its models stay in the registry."""
    if await parts.delivery.delete_endpoint(name, who.subject) is None:
        with contextlib.suppress(NotFound):  # it was ended before its first row
            await asyncio.to_thread(close_route, parts.store, name, who.subject)


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
    try:
        encoded = json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:  # lone surrogates, or numbers beyond all floats
        raise InvalidInput("input: send valid Unicode and finite numbers") from None
    headers["Content-Type"] = "application/json"
    answer = await send(request, parts, endpoint, "POST", path, content=encoded, headers=headers)
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


async def send(
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
