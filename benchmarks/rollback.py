"""From a judge's verdict to no traffic: the route row, and the serving process that obeys it.

Held against the poll of the serving process, below which it cannot be on average. Goals: verdict to
row < 100 ms, row to obeying <= 1 s.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from loomos.serving.process import POLL_S
from tests.serving import Users, rollout, save_tiny, spoil
from tests.stack import Stack

ROUNDS = 7
STAGES = [{"name": "half", "canary_percent": 50, "requests": 100_000}]


async def _obeyed(url: str, endpoint: str) -> datetime:
    """When the server splits nothing to the canary any more."""
    async with httpx.AsyncClient(trust_env=False) as http:
        shared = False
        while True:
            share = (await http.get(f"{url}/health")).json()["canary_bp"].get(endpoint, 0)
            shared = shared or share > 0
            if shared and share == 0:
                return datetime.now(UTC)
            await asyncio.sleep(0.005)


async def measure(stack: Stack) -> dict[str, Any]:
    """Roll a broken version back again and again."""
    to_row: list[float] = []
    to_server: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        async with stack.client() as client:
            good = await client.models.upload(save_tiny(root / "good", 0), "rollback")
            bad = await client.models.upload(spoil(root / "good", root / "bad"), "rollback")
            await client.deploy_model(f"rollback@{good.version}", "rollback")
            url = next(m.url for m in stack.state.members if m.name == "serve-1")
            for _ in range(ROUNDS):
                watching = asyncio.create_task(_obeyed(url, "rollback"))
                async with Users(stack, "rollback", url=url, clients=2):
                    await client.rollouts.start(
                        rollout("rollback", f"rollback@{bad.version}", stages=STAGES)
                    )
                    async with asyncio.timeout(60):
                        obeyed = await watching
                deadline = time.monotonic() + 30
                while not (status := await client.rollouts.get("rollback")).state.is_final:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)
                decided = status.verdicts[-1].decided_at
                assert status.verdict_to_traffic_ms is not None
                to_row.append(status.verdict_to_traffic_ms)
                to_server.append((obeyed - decided).total_seconds() * 1000)
                print(
                    "   ", {"row_ms": to_row[-1], "server_ms": round(to_server[-1], 1)}, flush=True
                )
            await client.endpoints.delete("rollback")
    return {
        "verdict_to_row_ms_p50": round(statistics.median(to_row), 1),
        "verdict_to_row_ms_worst": round(max(to_row), 1),
        "verdict_to_server_ms_p50": round(statistics.median(to_server), 1),
        "verdict_to_server_ms_worst": round(max(to_server), 1),
        "server_poll_ms": POLL_S * 1000,
        "ratio": round(statistics.median(to_server) / (POLL_S * 1000), 2),
    }
