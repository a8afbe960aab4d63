"""An arm that another server answers: vLLM, SGLang, or anything that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from loomos.errors import InvalidInput
from loomos.jobs.serving import RemoteTarget
from loomos.serving.api_errors import ApiError
from loomos.settings import RemoteKey

TIMEOUT_S = 600.0

RemoteKeys = Mapping[str, RemoteKey]
"""`serving.remotes`: the keys that may be sent, by name, and where to."""


def find_key(target: RemoteTarget, keys: RemoteKeys) -> RemoteKey | None:
    """The key that the target's author asks for; None where no key is asked for.

    Raises:
        InvalidInput: the operator's settings have no such key, or not for this URL.
    """
    name = target.api_key_env
    if name is None:
        return None
    found = keys.get(name)
    if found is None:
        raise InvalidInput(
            f"api_key_env: no key {name!r} in the operator's setting serving.remotes, which has "
            f"{', '.join(sorted(keys)) or 'none'}; name one of those, or leave it out"
        )
    if not _is_below(target.base_url, found.url):
        raise InvalidInput(
            f"api_key_env: the operator's setting serving.remotes sends the key {name!r} to "
            f"{found.url} only, and base_url is not below it"
        )
    return found


def _is_below(url: str, prefix: str) -> bool:
    """Whether a URL is another one or below it, read as it will be sent."""
    try:
        asked, allowed = httpx.URL(url), httpx.URL(prefix)
    except httpx.InvalidURL:
        return False
    if asked.userinfo or asked.query or asked.fragment or "?" in url or "#" in url:
        return False
    if re.search(r"%2e|%2f|%5c|\\", url, re.IGNORECASE):  # servers differ in how they read these
        return False
    if (asked.scheme, asked.host, asked.port) != (allowed.scheme, allowed.host, allowed.port):
        return False
    return f"{asked.path.rstrip('/')}/".startswith(f"{allowed.path.rstrip('/')}/")


def _read_key(target: RemoteTarget, keys: RemoteKeys) -> str:
    try:
        found = find_key(target, keys)
        if found is not None and found.file is not None:
            return found.file.expanduser().read_text(encoding="utf-8").strip()
    except (InvalidInput, OSError) as error:
        raise ApiError(503, f"{target.base_url} cannot be asked: {error}") from None
    return os.environ.get(target.api_key_env, "") if target.api_key_env else ""


class RemoteArm:
    """Passes requests on, under the name that the other server knows the model by."""

    def __init__(self, target: RemoteTarget, http: httpx.AsyncClient, keys: RemoteKeys) -> None:
        self._target, self._http, self._keys = target, http, keys

    def _prepare(self, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        key = _read_key(self._target, self._keys)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return {**body, "model": self._target.model}, headers

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer.

        Raises:
            ApiError: the other server refuses, cannot be reached, or may not be sent its key.
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
