"""`/v1` of the gateway: OpenAI's protocol, passed on to the servers that hold the models.

An application of its own, mounted into the gateway's, so that whatever is refused below `/v1` is
refused in OpenAI's words. It knows the protocol's paths and passes on no others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import State

from api.context import Gateway, Parts, Reader
from api.routes.serving import send
from loomos.serving import api_errors
from loomos.serving.api_errors import ApiError, decode, read_body

PASSED_ON = ("content-type", "authorization", "x-loomos-user", "accept")
PASSED_BACK = ("content-type", "retry-after", "x-loomos-version", "www-authenticate")
POSTED = ("/chat/completions", "/completions", "/feedback")

ModelName = Annotated[str, Path(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]


def create_openai_app(state: State) -> FastAPI:
    """The application; it shares the state of the one that it is mounted into."""
    app = FastAPI(title="LoomOS, as OpenAI", docs_url=None, redoc_url=None, openapi_url=None)
    app.state = state
    api_errors.install(app)

    @app.get("/models")
    async def list_models(parts: Parts, who: Reader) -> dict[str, Any]:
        names = await parts.delivery.endpoint_names()
        data = [{"id": n, "object": "model", "created": 0, "owned_by": "loomos"} for n in names]
        return {"object": "list", "data": data}

    @app.get("/models/{model}")
    async def get_model(model: ModelName, request: Request, parts: Parts, who: Reader) -> Response:
        return await _pass_on(request, parts, model.partition("@")[0], f"/models/{model}", b"")

    def add(path: str) -> None:
        @app.post(path)
        async def ask(request: Request, parts: Parts, who: Reader) -> Response:
            body = await read_body(request)
            return await _pass_on(request, parts, _model_of(decode(body)), path, body)

    for path in POSTED:
        add(path)
    return app


async def _pass_on(
    request: Request, parts: Gateway, endpoint: str, path: str, body: bytes
) -> Response:
    headers = {k: v for k, v in request.headers.items() if k.lower() in PASSED_ON}
    answer = await send(
        request, parts, endpoint, request.method, f"/v1{path}", content=body, headers=headers
    )
    kept = {k: v for k, v in answer.headers.items() if k.lower() in PASSED_BACK}

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            await answer.aclose()

    return StreamingResponse(pieces(), status_code=answer.status_code, headers=kept)


def _model_of(content: Any) -> str:
    """The endpoint that a request names; empty if it names none, as feedback does."""
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    model = content.get("model", "")
    if not isinstance(model, str):
        raise ApiError(400, "model: give the name of an endpoint", param="model")
    return model.partition("@")[0]
