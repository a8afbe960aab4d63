"""Generators: an engine in this process, or a server that speaks OpenAI's protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loomos.errors import Unavailable
from loomos.prism.answers import Question, Said

if TYPE_CHECKING:
    from loomos.serving.hosting import AnyEngine

LONGEST_ANSWER_S = 600.0
OFFLINE_BATCH = 64
"""Rows of a batch where nobody waits for a single answer."""


class EngineGenerator:
    """Answers with a loaded version.

    Args:
        engine: what generates.
        slot: the version's adapter in it.
    """

    def __init__(self, engine: AnyEngine, slot: int = 0) -> None:
        self._engine, self._slot = engine, slot

    def generate(
        self, questions: Sequence[Question], max_tokens: int, temperature: float
    ) -> list[Said]:
        """Answer every question; the engine batches them.

        Raises:
            Unavailable: the model failed.
        """
        from loomos.serving.chat import chat_prompt, turn_ends
        from loomos.serving.rows import Piece, Row, Sampling

        said: list[Said | None] = [None] * len(questions)
        left = threading.Semaphore(0)
        errors: list[str] = []

        def submit(index: int, question: Question) -> None:
            texts: list[str] = []
            began = time.monotonic()

            def deliver(piece: Piece) -> None:
                texts.append(piece.text)
                if piece.finish_reason is not None:
                    if piece.error:
                        errors.append(piece.error)
                    took = time.monotonic() - began
                    said[index] = Said("".join(texts), piece.tokens, took)
                    left.release()

            turns = [{"role": "user", "content": question.prompt}]
            if question.system:
                turns.insert(0, {"role": "system", "content": question.system})
            prompt = chat_prompt(self._engine.tokenizer, turns)
            room = max(1, self._engine.context_length - len(prompt))
            self._engine.submit(
                Row(
                    prompt=prompt,
                    sampling=Sampling(
                        max_tokens=min(max_tokens, room),
                        temperature=temperature,
                        seed=question.seed,
                    ),
                    deliver=deliver,
                    slot=self._slot,
                    stop_ids=turn_ends(self._engine.tokenizer),
                )
            )

        for index, question in enumerate(questions):
            submit(index, question)
        for _ in questions:
            left.acquire()
        if errors:
            raise Unavailable(f"the model failed: {errors[0]}")
        return [item for item in said if item is not None]


class HttpGenerator:
    """Answers by way of a server.

    Args:
        base_url: up to and with `/v1`.
        model: the name it knows the model by.
        api_key: to send; empty for none.
    """

    def __init__(self, base_url: str, model: str, api_key: str = "") -> None:
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model, self._api_key = model, api_key

    def generate(
        self, questions: Sequence[Question], max_tokens: int, temperature: float
    ) -> list[Said]:
        """One request each, sixteen at a time.

        Raises:
            Unavailable: the server does not answer.
        """
        from concurrent.futures import ThreadPoolExecutor

        import httpx

        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        with httpx.Client(trust_env=False, headers=headers, timeout=LONGEST_ANSWER_S) as http:

            def ask(question: Question) -> Said:
                turns = [{"role": "user", "content": question.prompt}]
                if question.system:
                    turns.insert(0, {"role": "system", "content": question.system})
                body: dict[str, Any] = {
                    "model": self._model,
                    "messages": turns,
                    "max_tokens": max_tokens,
                    "temperature": temperature,
                    "seed": question.seed,
                }
                began = time.monotonic()
                try:
                    answer = http.post(self._url, json=body)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    raise Unavailable(f"{self._url}: {error}") from error
                found = answer.json()
                text = found["choices"][0]["message"]["content"] or ""
                tokens = int((found.get("usage") or {}).get("completion_tokens") or 0)
                return Said(text, tokens, time.monotonic() - began)

            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(ask, questions))
