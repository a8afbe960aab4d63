"""An arm that another server answers: vLLM, SGLang, or anything that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import httpx

from loomos.jobs.serving import RemoteTarget
from loomos.serving.api_errors import ApiError

TIMEOUT_S = 600.0


class RemoteArm:
    """Passes requests on, under the name that the other server knows the model by."""

    def __init__(self, target: RemoteTarget, http: httpx.AsyncClient) -> None:
        self._target, self._http = target, http

    def _prepare(self, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        key = os.environ.get(self._target.api_key_env or "", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return {**body, "model": self._target.model}, headers

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer.

        Raises:
            ApiError: the other server refuses, or cannot be reached.
        """
        content, headers = self._prepare(body)
        try:
            answer = await self._http.post(
                self._target.base_url.rstrip("/") + path,
                json=content,
                headers=headers,
                timeout=TIMEOUT_S,
            )
        except httpx.HTTPError as error:
            raise _unreachable(self._target, error) from error
        if answer.status_code >= 400:
            raise _refusal(answer.status_code, answer.content)
        found: dict[str, Any] = answer.json()
        return found

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The answer's chunks, as they come.

        Raises:
            ApiError: as `ask`; in the middle too, if the connection breaks.
        """
        content, headers = self._prepare(body)
        try:
            async with self._http.stream(
                "POST",
                self._target.base_url.rstrip("/") + path,
                json=content,
                headers=headers,
                timeout=TIMEOUT_S,
            ) as answer:
                if answer.status_code >= 400:
                    raise _refusal(answer.status_code, await answer.aread())
                async for line in answer.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if line.startswith("data:") and data != "[DONE]":
                        yield json.loads(data)
        except httpx.HTTPError as error:
            raise _unreachable(self._target, error) from error


def _unreachable(target: RemoteTarget, error: httpx.HTTPError) -> ApiError:
    reason = str(error) or type(error).__name__
    return ApiError(503, f"{target.base_url} does not answer: {reason}", retry_after_s=1)


def _refusal(status: int, content: bytes) -> ApiError:
    try:
        error = json.loads(content)["error"]
        message, param, code = error["message"], error.get("param"), error.get("code")
    except (ValueError, KeyError, TypeError):
        message, param, code = content.decode(errors="replace")[:500], None, None
    return ApiError(
        status, message, param=param, code=code, retry_after_s=1 if status in (429, 503) else None
    )
