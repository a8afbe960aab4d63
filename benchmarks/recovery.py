"""kill -9 of a worker to the next training step, and where the time goes.

The limit it is held against is the time that a new Python process takes to import torch and
transformers, which no supervisor can avoid without a spare machine. Goal: <= 10 s on two cores.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from datetime import datetime
from typing import Any

from benchmarks.throughput import job
from loomos.jobs.states import JobState
from tests.stack import Stack, manifest

ROUNDS = 3


async def import_s() -> float:
    """Time of a fresh process that loads what a rank needs."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import loomos.training.export, loomos.training.gang",
        stderr=asyncio.subprocess.DEVNULL,
    )
    await process.wait()
    return time.monotonic() - began


async def one(stack: Stack, number: int) -> dict[str, float]:
    """Kill a node in the middle of a run; seconds after the kill of what followed."""
    async with stack.client() as client:
        document = job(f"recover-{number}", 90, checkpoint_steps=20)
        submitted = await client.submit_job_from_manifest(manifest(document))
        await stack.eventually(
            lambda: client.get_job_status(submitted.job_id),
            lambda j: j.training is not None and j.training.step >= 30,
        )
        killed = time.time()
        stack.kill("node-2")
        done = await stack.until(
            client, submitted.job_id, JobState.COMPLETED, within_s=300, every_s=5
        )
        records = (await client.get_job_metrics(submitted.job_id)).records
        logs = (await client.get_job_logs(submitted.job_id)).records
    second = [r["at"] for r in records if r["generation"] == 2 and r["kind"] == "step"]
    ready = [
        datetime.strptime(r["line"][:23], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()
        for r in logs
        if r["generation"] == 2 and "trained parameters" in r["line"]
    ]
    noticed = next(e.at.timestamp() for e in done.timeline if e.state == "recovering")
    leased = done.attempts[1].started_at.timestamp()
    return {
        "noticed": noticed - killed,
        "nodes_leased": leased - killed,
        "ranks_ready": max(ready) - killed,
        "next_step": min(second) - killed,
    }


async def measure(stack: Stack) -> dict[str, Any]:
    """Median over some kills."""
    rounds = [await one(stack, number) for number in range(ROUNDS)]
    await asyncio.sleep(8)
    limit = await import_s()
    medians = {k: round(statistics.median(r[k] for r in rounds), 2) for k in rounds[0]}
    return {
        "seconds_after_kill": medians,
        "import_of_torch_alone_s": round(limit, 2),
        "ratio_to_import": round(medians["next_step"] / limit, 2),
        "goal": "<= 10 s",
    }
