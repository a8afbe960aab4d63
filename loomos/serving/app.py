"""The HTTP face of a serving process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from jinja2 import TemplateError
from starlette.requests import ClientDisconnect

from loomos.errors import LoomOSError, NotFound, Unavailable
from loomos.security.tokens import verify
from loomos.serving import api_errors
from loomos.serving.api_errors import ApiError, body_of
from loomos.serving.chat import chat_prompt, turn_ends
from loomos.serving.noting import Choice, Generation
from loomos.serving.protocol import (
    DONE,
    ChatRequest,
    CompletionRequest,
    FeedbackRequest,
    event,
)
from loomos.serving.rows import Piece, Sampling
from loomos.serving.service import Service

DEFAULT_CHAT_TOKENS, DEFAULT_COMPLETION_TOKENS = 256, 16
"""Tokens when a request names no limit; OpenAI's default for completions is 16 too."""

LONG_TEXT = 10_000
"""Characters above which a text is made into tokens in a thread: others are answered meanwhile."""
TURN = 32
"""Characters that a turn's role and marks stand for, whatever its text."""
_LONG_TEXTS = ThreadPoolExecutor(1, "long-texts")
"""One thread of their own, so that long texts hold up each other only."""
STALLED_S = 60.0
"""How long a client may take to read what a stream has; then the stream ends."""

router = APIRouter()

T = TypeVar("T")
BodyT = TypeVar("BodyT", ChatRequest, CompletionRequest)


def create_app(service: Service, signing_key: str | None) -> FastAPI:
    """The application around a service.

    Args:
        service: what answers.
        signing_key: verifies bearer tokens; None lets everyone in.
    """
    app = FastAPI(title="LoomOS serving", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service, app.state.signing_key = service, signing_key
    app.include_router(router)
    api_errors.install(app)

    @app.exception_handler(LoomOSError)
    async def failed(request: Request, error: LoomOSError) -> JSONResponse:
        retry = 1 if isinstance(error, Unavailable | NotFound) else None
        status = 503 if retry else error.status
        return ApiError(status, str(error), retry_after_s=retry).response()

    return app


async def _service(request: Request) -> Service:  # plain functions would cost a thread each
    found: Service = request.app.state.service
    return found


async def _authorised(request: Request) -> None:
    key = request.app.state.signing_key
    if key is None:
        return
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        if scheme.lower() != "bearer":
            raise ApiError(401, "send a bearer token as the API key", code="invalid_api_key")
        who = verify(key, token)
    except LoomOSError as error:
        raise ApiError(401, str(error), code="invalid_api_key") from None
    if not who.allows("read"):
        raise ApiError(403, f"the token of {who.subject} lacks the scope 'read'")


Serving = Annotated[Service, Depends(_service)]
Allowed = Depends(_authorised)


@router.get("/health")
async def health(service: Serving) -> JSONResponse:
    """Whether this server takes requests, and how it splits traffic now."""
    from loomos.serving.outcomes import now

    content = {
        "status": "draining" if service.is_draining else "ok",
        "loaded": service.host.loaded,
        "failed": service.host.failed,
        "canary_bp": service.obeys(now()),
        "running": service.running,
    }
    return JSONResponse(content, status_code=503 if service.is_draining else 200)


@router.get("/v1/models", dependencies=[Allowed])
async def list_models(service: Serving) -> dict[str, Any]:
    """Endpoints that this server answers for."""
    return {"object": "list", "data": [_model(route.endpoint) for route in service.endpoints()]}


@router.get("/v1/models/{model}", dependencies=[Allowed])
async def get_model(model: str, service: Serving) -> dict[str, Any]:
    """One endpoint."""
    if all(route.endpoint != model for route in service.endpoints()):
        raise ApiError(404, f"model: {model!r} is not served here", code="model_not_found")
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "loomos"}


Feedback = Annotated[FeedbackRequest, Depends(body_of(FeedbackRequest))]
Chat = Annotated[ChatRequest, Depends(body_of(ChatRequest))]
Completion = Annotated[CompletionRequest, Depends(body_of(CompletionRequest))]


@router.post("/v1/feedback", dependencies=[Allowed], status_code=202)
async def feedback(body: Feedback, service: Serving) -> dict[str, str]:
    """A thumb up or down for an answer."""
    service.notes.feedback(body, service.endpoints())
    return {"status": "accepted"}


@router.post("/v1/chat/completions", dependencies=[Allowed])
async def chat(body: Chat, request: Request, service: Serving) -> Response:
    """Answer a conversation."""
    body.refuse_unsupported()
    choice = service.choose(body.model, _sticky(body, request))
    if choice.hosted is None:
        return await _pass_on(service, choice, "/chat/completions", body, request)
    tokenizer = choice.hosted.engine.tokenizer
    turns = [{"role": turn.role, "content": turn.text()} for turn in body.messages]
    length = sum(len(turn["content"]) for turn in turns)
    _check_length(choice, length + len(turns), "messages")  # no turn takes less than a token
    work = length + TURN * len(turns)
    try:
        prompt = await _made(service, choice, work, lambda: chat_prompt(tokenizer, turns))
    except (TemplateError, TypeError, ValueError) as error:
        raise ApiError(
            400, f"messages: the model's chat template refuses them: {error}", param="messages"
        ) from None
    samplings = _samplings(body, choice, DEFAULT_CHAT_TOKENS, [prompt])
    stop_ids = turn_ends(tokenizer)
    return await _answer(service, choice, body, request, [prompt], samplings, stop_ids)


@router.post("/v1/completions", dependencies=[Allowed])
async def complete(body: Completion, request: Request, service: Serving) -> Response:
    """Continue a text."""
    body.refuse_unsupported()
    choice = service.choose(body.model, _sticky(body, request))
    if choice.hosted is None:
        return await _pass_on(service, choice, "/completions", body, request)
    tokenizer = choice.hosted.engine.tokenizer
    asked = body.prompts()
    texts = [prompt for prompt in asked if isinstance(prompt, str)]
    _check_length(choice, max(map(len, texts), default=0), "prompt")
    prompts = await _made(
        service,
        choice,
        sum(map(len, texts)),
        lambda: [tokenizer(p)["input_ids"] if isinstance(p, str) else p for p in asked],
    )
    samplings = _samplings(body, choice, DEFAULT_COMPLETION_TOKENS, prompts)
    return await _answer(service, choice, body, request, prompts, samplings, frozenset())


def _check_length(choice: Choice, characters: int, param: str) -> None:
    """Refuse a text that is too long for the model before it is made into tokens."""
    assert choice.hosted is not None
    engine = choice.hosted.engine
    if characters > engine.most_characters:
        raise ApiError(
            400,
            f"the model's context is {engine.context_length} tokens, and {characters} characters "
            "are more than can fit",
            param=param,
            code="context_length_exceeded",
        )


async def _made(
    service: Service, choice: Choice, characters: int, make: Callable[[], list[T]]
) -> list[T]:
    """Make tokens of texts that have this many characters together."""
    if characters <= LONG_TEXT:
        return make()
    with service.admitted(choice):
        return await asyncio.get_running_loop().run_in_executor(_LONG_TEXTS, make)


def _sticky(body: ChatRequest | CompletionRequest, request: Request) -> str | None:
    return body.user or request.headers.get("X-LoomOS-User")


def _samplings(
    body: ChatRequest | CompletionRequest, choice: Choice, default: int, prompts: list[list[int]]
) -> list[Sampling]:
    assert choice.hosted is not None
    room = choice.hosted.engine.context_length - max(map(len, prompts), default=0)
    default = max(1, min(default, room))
    limit = choice.route.spec.max_tokens
    return [body.sampling(default, limit, index) for index in range(body.choices)]


# --- replies ------------------------------------------------------------------------------------


async def _answer(
    service: Service,
    choice: Choice,
    body: BodyT,
    request: Request,
    prompts: list[list[int]],
    samplings: list[Sampling],
    stop_ids: frozenset[int],
) -> Response:
    answers = len(prompts) * len(samplings)
    if body.stream:
        with contextlib.ExitStack() as held:
            held.enter_context(service.admitted(choice, answers))
            generation = service.start(choice, prompts, samplings, stop_ids, is_streamed=True)
            held.callback(generation.cancel)
            response: Response = _Stream(_stream(service, generation, body), held.pop_all())
    else:
        with service.admitted(choice, answers):
            generation = service.start(choice, prompts, samplings, stop_ids)
            await _unless_gone(request, service.finish(generation), generation)
        response = JSONResponse(_whole(generation, body))
        _note_sample(service, generation, body)
    service.shadow(choice, body.user or choice.request_id, prompts, samplings, stop_ids)
    response.headers["X-LoomOS-Version"] = choice.target.version
    return response


class _Stream(StreamingResponse):
    """Server-sent events that let go of what they hold however they end, even before the first.

    Who stops reading does not hold a place, and a version, for ever.
    """

    def __init__(self, chunks: AsyncIterator[str], held: contextlib.ExitStack) -> None:
        super().__init__(chunks, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        with self._held, contextlib.suppress(TimeoutError, ClientDisconnect):
            await super().__call__(scope, receive, send_in_time)


async def _unless_gone(request: Request, work: Any, generation: Generation) -> None:
    """Wait for the work; if the client goes away, cancel it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            generation.cancel()
        await working
    finally:
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _note_sample(service: Service, generation: Generation, body: BodyT) -> None:
    texts = [answer.text for answer in generation.answers]
    service.notes.note_sample(generation.choice, body, texts)


def _head(choice: Choice, body: BodyT, *, chunk: bool) -> dict[str, Any]:
    is_chat = isinstance(body, ChatRequest)
    kind = ("chat.completion" + ".chunk" * chunk) if is_chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{choice.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": choice.target.version,
    }


def _usage(generation: Generation) -> dict[str, int]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.tokens,
        "total_tokens": generation.prompt_tokens + generation.tokens,
    }


def _whole(generation: Generation, body: BodyT) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    for index, answer in enumerate(generation.answers):
        content: dict[str, Any] = {"text": answer.text}
        if isinstance(body, ChatRequest):
            content = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        reason = answer.finish_reason
        choices.append({"index": index, **content, "logprobs": None, "finish_reason": reason})
    return {
        **_head(generation.choice, body, chunk=False),
        "choices": choices,
        "usage": _usage(generation),
    }


async def _stream(service: Service, generation: Generation, body: BodyT) -> AsyncIterator[str]:
    head = _head(generation.choice, body, chunk=True)
    is_chat = isinstance(body, ChatRequest)
    if is_chat:
        for index in range(len(generation.answers)):
            yield event({**head, "choices": [_delta(index, {"role": "assistant", "content": ""})]})
    async for index, piece in service.follow(generation):
        if piece.error:
            yield event(ApiError(500, f"the model failed: {piece.error}").body)
            return
        yield event({**head, "choices": [_piece(index, piece, is_chat=is_chat)]})
    if body.wants_usage:
        yield event({**head, "choices": [], "usage": _usage(generation)})
    yield DONE
    _note_sample(service, generation, body)


def _piece(index: int, piece: Piece, *, is_chat: bool) -> dict[str, Any]:
    if is_chat:
        delta = {"content": piece.text} if piece.text else {}
        return _delta(index, delta, piece.finish_reason)
    return {
        "index": index,
        "text": piece.text,
        "logprobs": None,
        "finish_reason": piece.finish_reason,
    }


def _delta(index: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


# --- remote arms --------------------------------------------------------------------------------


async def _pass_on(
    service: Service, choice: Choice, path: str, body: BodyT, request: Request
) -> Response:
    """Let a server elsewhere answer, and note how that went."""
    arm = service.remote(choice)
    content = body.model_dump(mode="json", exclude_unset=True)
    began = time.monotonic()
    if not body.stream:
        with service.admitted(choice):
            try:
                answer = await arm.ask(path, content)
            except ApiError as error:
                service.notes.note_answer(
                    choice, error.status, [], latency_s=time.monotonic() - began
                )
                raise
        texts = [_text_of(item) for item in answer.get("choices", [])]
        usage = answer.get("usage") or {}
        service.notes.note_answer(
            choice,
            200,
            texts,
            latency_s=time.monotonic() - began,
            tokens=int(usage.get("completion_tokens") or 0),
        )
        service.notes.note_sample(choice, body, texts)
        answer |= {"id": f"cmpl-{choice.request_id}", "model": body.model}
        return JSONResponse(answer)

    async def chunks() -> AsyncIterator[str]:
        texts: dict[int, str] = {}
        status, first_at = 200, None
        with service.admitted(choice):
            try:
                async for chunk in arm.stream(path, content):
                    first_at = first_at or time.monotonic()
                    for item in chunk.get("choices", []):
                        index = item.get("index", 0)
                        texts[index] = texts.get(index, "") + _text_of(item)
                    chunk |= {"id": f"cmpl-{choice.request_id}", "model": body.model}
                    yield event(chunk)
                yield DONE
            except ApiError as error:
                status = error.status
                yield event(error.body)
        service.notes.note_answer(
            choice,
            status,
            list(texts.values()),
            latency_s=time.monotonic() - began,
            first_token_s=None if first_at is None else first_at - began,
        )

    return StreamingResponse(chunks(), media_type="text/event-stream")


def _text_of(item: dict[str, Any]) -> str:
    content = item.get("text") or (item.get("message") or item.get("delta") or {}).get("content")
    return content or ""
