"""Models in service for tests: tiny versions, endpoints, clients that keep asking."""

from __future__ import annotations

import asyncio
import collections
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from loomos.client.http import LoomOSClient
from loomos.jobs.rollouts import CanaryRollout, RolloutStatus
from loomos.training.tokenizer import byte_tokenizer
from tests.stack import Stack


def save_tiny(folder: Path, seed: int) -> Path:
    """Random weights of a tiny Llama over bytes."""
    torch.manual_seed(seed)
    tokenizer: Any = byte_tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spoil(source: Path, target: Path) -> Path:
    """A copy whose output layer is not a number: it loads, and cannot sample."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"][:, 0] = math.nan
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


class Users:
    """Clients of an endpoint that keep asking, each request as another user."""

    def __init__(
        self, stack: Stack, endpoint: str, url: str | None = None, clients: int = 3
    ) -> None:
        token = stack.folder.token_file.read_text().strip()
        base = url or stack.state.settings["cluster"]["endpoint"]
        self._http = httpx.AsyncClient(
            base_url=f"{base}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        self._endpoint, self._clients = endpoint, clients
        self._count = itertools.count()
        self.answers: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[int] = collections.Counter()
        self.broken = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Users:
        self._tasks = [asyncio.create_task(self._keep_asking()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *exit: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def _keep_asking(self) -> None:
        while True:
            body = {
                "model": self._endpoint,
                "prompt": "hello",
                "max_tokens": 4,
                "user": f"user-{next(self._count)}",
            }
            try:
                answer = await self._http.post("/completions", json=body)
            except httpx.HTTPError:
                self.broken += 1
                await asyncio.sleep(0.2)
                continue
            if answer.status_code == 200:
                self.answers[answer.json()["system_fingerprint"]] += 1
            else:
                self.refused[answer.status_code] += 1
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.02)


def rollout(endpoint: str, model: str, **spec: Any) -> CanaryRollout:
    """A rollout of two short stages; change what a test is about."""
    fields: dict[str, Any] = {
        "endpoint": endpoint,
        "model": model,
        "require_verification": False,
        "bake": "1s",
        "lease": "4s",
        "stages": [
            {"name": "shadow", "shadow_percent": 50, "requests": 15},
            {"name": "half", "canary_percent": 50, "requests": 15},
        ],
        "guardrails": [
            {"event": "error", "margin": 0.3},
            {"event": "empty", "margin": 0.5},
        ],
    }
    return CanaryRollout.model_validate(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "CanaryRollout",
            "metadata": {"name": endpoint},
            "spec": {**fields, **spec},
        }
    )


async def until_over(
    stack: Stack, client: LoomOSClient, endpoint: str, within_s: float = 120
) -> RolloutStatus:
    """Wait for the end of a rollout."""
    return await stack.eventually(
        lambda: client.rollouts.get(endpoint), lambda status: status.state.is_final, within_s
    )
