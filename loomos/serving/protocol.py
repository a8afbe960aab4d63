"""OpenAI's protocol: what is accepted, what is answered, how errors look.

Shapes after platform.openai.com/docs/api-reference (chat, completions, models). What this server
cannot do is refused by name, never ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from loomos.serving.rows import Sampling

UNSUPPORTED = (
    "audio",
    "best_of",
    "echo",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "modalities",
    "prediction",
    "presence_penalty",
    "suffix",
    "tool_choice",
    "tools",
    "top_logprobs",
    "web_search_options",
)
"""Parameters that would change the answer and that this server does not know."""
MOST_CHOICES = 16


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

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
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


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def text(self) -> str:
        """Its content as text.

        Raises:
            ApiError: it has parts that are no text.
        """
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type != "text" or part.text is None:
                raise ApiError(
                    400, f"messages: {part.type!r} parts are not supported", param="messages"
                )
        return "".join(part.text or "" for part in self.content)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    @property
    def choices(self) -> int:
        """Answers wanted for each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, default_tokens: int, limit: int, index: int) -> Sampling:
        """How to choose tokens for the choice with this index.

        Raises:
            ApiError: more tokens are asked for than the endpoint allows.
        """
        wanted = self._tokens() or min(default_tokens, limit)
        if wanted > limit:
            raise ApiError(
                400,
                f"max_tokens: {wanted} is more than this endpoint's {limit}",
                param="max_tokens",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=wanted,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else self.seed + index,
            stop=tuple(text for text in stop if text),
        )

    def _tokens(self) -> int | None:
        return self.max_tokens

    def refuse_unsupported(self) -> None:
        """Raise `ApiError` for a parameter that would change the answer and is not known here."""
        for name in UNSUPPORTED:
            if (self.model_extra or {}).get(name) not in (None, False, 0, 0.0, [], {}):
                raise ApiError(
                    400,
                    f"{name}: not supported here; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )
        form = (self.model_extra or {}).get("response_format")
        if form is not None and form != {"type": "text"}:
            raise ApiError(
                400,
                "response_format: only text is supported",
                param="response_format",
                code="unsupported_parameter",
            )


class ChatRequest(_Request):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def _tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Request):
    """Body of `POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]

    def prompts(self) -> list[str | list[int]]:
        """Every prompt, as text or tokens.

        Raises:
            ApiError: there is none.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ApiError(400, "prompt: there is none", param="prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class FeedbackRequest(BaseModel):
    """Body of `POST /v1/feedback`: what a person thought of an answer."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=200)]
    """`id` of the answer."""
    score: Literal["up", "down"] | None = None
    """Thumb."""
    events: Annotated[dict[str, bool], Field(max_length=20)] = {}
    """What happened with the answer, or did not, by name: guardrails of the kind `custom`."""
    correction: Annotated[str, Field(max_length=100_000)] | None = None
    """What would have been right; kept to learn from where the endpoint captures."""
    user: Annotated[str, Field(max_length=512)] | None = None
    """Sticky key of the request."""


def invalid_request(errors: list[Any]) -> ApiError:
    """Pydantic's findings as one error."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    param = where.split(".")[0]
    return ApiError(400, f"{where}: {first['msg']}", param=None if param == "body" else param)


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"
