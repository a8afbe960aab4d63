"""A gang of eight ranks: from submission to the last rank's process, and back after a rank's death.

Two nodes of four ranks on an idle stack. A rank's own start-up (joining, loading the model) is
what any launcher has, so the clock stops when its process exists. After a kill -9 of a rank it
runs until the last rank of the new gang exists. Goals: < 1 s p50, < 2 s.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from loomos.jobs.states import JobState
from tests.stack import Stack, manifest, running_stack, tiny_job

NEEDS_STACK = False
ROUNDS = 20
DEATHS = 5
RANKS = 8


def clock_error_s() -> float:
    """How far creation times of processes lie off the clock.

    They are counted from the boot, whose time the kernel tells in whole seconds.
    """
    errors = []
    for _ in range(9):
        before = time.time()
        with subprocess.Popen(["/bin/sleep", "0.05"]) as made:
            errors.append(psutil.Process(made.pid).create_time() - before)
    return statistics.median(errors)


def ranks(stack: Stack) -> dict[int, float]:
    """Processes of ranks on both nodes, and when each was made."""
    found: dict[int, float] = {}
    for node in ("node-1", "node-2"):
        for process in stack.hosted(node):
            try:
                if not process.children():
                    found[process.pid] = process.create_time()
            except psutil.NoSuchProcess:
                continue
    return found


async def all_there(stack: Stack, before: set[int]) -> float:
    """When the last of eight new ranks was made."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        new = {pid: at for pid, at in ranks(stack).items() if pid not in before}
        if len(new) > RANKS:  # the process that serves the gang's store has no children either
            return max(new.values())
        await asyncio.sleep(0.05)
    raise AssertionError("no gang")


def gang_job(name: str, steps: int) -> dict[str, Any]:
    """A tiny job of eight ranks."""
    document = tiny_job(name, max_steps=steps, batch_size=8, sequence_length=32)
    document["spec"]["resources"] = {"nodes": 2, "ranks_per_node": RANKS // 2}
    document["spec"]["runtime"] = {"checkpoint_steps": 5, "stop_grace": "1s"}
    return document


async def measure(stack: None) -> dict[str, Any]:
    """Start gangs; kill a rank in some."""
    os.environ["LOOMOS_NODE__MAX_RANKS"] = str(RANKS // 2)
    error_s = clock_error_s()
    started: list[float] = []
    again: list[float] = []
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder), 2) as own:
        await asyncio.sleep(10)  # until every node has loaded torch
        async with own.client() as client:
            for number in range(ROUNDS + DEATHS + 1):
                dies = number > ROUNDS
                before = set(ranks(own))
                called = time.time()
                job = await client.submit_job_from_manifest(
                    manifest(gang_job(f"gang-{number}", 10_000))
                )
                last = await all_there(own, before)
                if number and not dies:  # the first one loads what all need
                    started.append(last - called - error_s)
                if dies:
                    await own.eventually(
                        lambda job=job: client.get_job_status(job.job_id),  # type: ignore[misc]
                        lambda found: found.training is not None and found.training.step >= 3,
                    )
                    known = set(ranks(own))
                    killed = time.time()
                    os.kill(max(known), signal.SIGKILL)
                    again.append(await all_there(own, known) - killed - error_s)
                await client.cancel_job(job.job_id)
                await own.until(client, job.job_id, JobState.CANCELLED, within_s=120)
                await asyncio.sleep(1)
    cuts = statistics.quantiles(started, n=100)
    return {
        "submit_to_last_rank_s_p50": round(statistics.median(started), 3),
        "submit_to_last_rank_s_p99": round(cuts[98], 3),
        "rank_death_to_new_gang_s_p50": round(statistics.median(again), 3),
        "rank_death_to_new_gang_s_worst": round(max(again), 3),
        "ratio": round(statistics.median(started), 2),
    }
