"""OpenAI's protocol: what is accepted, what is answered, how errors look.

Shapes after platform.openai.com/docs/api-reference (chat, completions, models). What this server
cannot do is refused by name, never ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from loomos.serving.api_errors import ApiError
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
MOST_ANSWERS = 256
"""Answers of one request, over all its prompts: each takes a row of the engine."""
MOST_TOKENS = 1_000_000
"""No endpoint lets a request ask for more."""

Count = Annotated[int, Field(strict=True, ge=1, le=MOST_TOKENS)]
Token = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
StopText = Annotated[str, Field(max_length=256)]
User = Annotated[str, Field(max_length=512)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(fail_fast=True, max_length=10_000)]

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

    def declared(self) -> str | list[dict[str, Any]]:
        """Its content, of parts their kind and text only."""
        if isinstance(self.content, str):
            return self.content
        return [{"type": part.type, "text": part.text} for part in self.content]


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    max_tokens: Count | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=MOST_CHOICES)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = None
    stream_options: _StreamOptions | None = None
    user: User | None = None

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

    def declared(self) -> dict[str, Any]:
        """What was sent, without the fields that this protocol does not know."""
        known = set(type(self).model_fields)
        return self.model_dump(mode="json", exclude_unset=True, include=known)

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

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=10_000)]
    max_completion_tokens: Count | None = None

    def _tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def declared(self) -> dict[str, Any]:
        """As for every request; parts of turns have their kind and text only."""
        turns = [{"role": turn.role, "content": turn.declared()} for turn in self.messages]
        return {**super().declared(), "messages": turns}


def _say_what_a_prompt_is(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        raise ValueError(
            "give a text, a list of texts, a list of token ids, or a list of such lists"
        ) from None


_Tokens = Annotated[list[Token], Field(fail_fast=True)]


class CompletionRequest(_Request):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        str
        | Annotated[list[str], Field(fail_fast=True)]
        | _Tokens
        | Annotated[list[_Tokens], Field(fail_fast=True)],
        WrapValidator(_say_what_a_prompt_is),
    ]

    def prompts(self) -> list[str | list[int]]:
        """Every prompt, as text or tokens.

        Raises:
            ApiError: there is none, or more than may be answered at a time.
        """
        found = self._prompts()
        if len(found) * self.choices > MOST_ANSWERS:
            raise ApiError(
                400,
                f"prompt: {len(found)} prompts with {self.choices} answers each are more than "
                f"{MOST_ANSWERS}; send several requests",
                param="prompt",
            )
        return found

    def _prompts(self) -> list[str | list[int]]:
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
    events: Annotated[dict[Annotated[str, Field(max_length=200)], bool], Field(max_length=20)] = {}
    """What happened with the answer, or did not, by name: guardrails of the kind `custom`."""
    correction: Annotated[str, Field(max_length=100_000)] | None = None
    """What would have been right; kept to learn from where the endpoint captures."""
    user: User | None = None
    """Sticky key of the request."""


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"
