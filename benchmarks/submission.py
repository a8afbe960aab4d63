"""No-op jobs through the gateway against raw no-op workflows on the same Temporal server.

Latency: submissions at 5 a second; from the call to the start of the activity, as Temporal's
history has it. Rate: submissions as fast as 16 callers can; completed per second. The two kinds
alternate in one run. Goals: p99 less than 100 ms over raw; >= 10,000 an hour and >= 0.6 of raw.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from benchmarks.raw_temporal import QUEUE
from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.settings import TemporalSettings
from tests.stack import Stack, manifest

LATENCY_JOBS = 150
RATE_JOBS = 300
PER_S = 5
CALLERS = 16

Submit = Callable[[], Awaitable[str]]

NOOP = {
    "apiVersion": "loomos.ai/v1",
    "kind": "TrainingJob",
    "metadata": {"name": "noop"},
    "spec": {"algorithm": "noop"},
}


async def started_after_ms(temporal: Client, workflow_id: str, called: float) -> float:
    """From the call to the start of the workflow's activity."""
    handle = temporal.get_workflow_handle(workflow_id)
    await handle.result()
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            return (event.event_time.ToDatetime().timestamp() - called) * 1000
    raise AssertionError(workflow_id)


async def latencies(temporal: Client, submit: Submit) -> list[float]:
    """Submit at a steady rate and look at each history afterwards."""
    calls: list[tuple[float, asyncio.Task[str]]] = []
    for _ in range(LATENCY_JOBS):
        calls.append((time.time(), asyncio.create_task(submit())))  # type: ignore[arg-type]
        await asyncio.sleep(1 / PER_S)
    return [await started_after_ms(temporal, await task, called) for called, task in calls]


async def completed_per_s(temporal: Client, submit: Submit) -> float:
    """Submit with some callers at once; each waits for its job before the next."""
    left = iter(range(RATE_JOBS))

    async def caller() -> None:
        for _ in left:
            await temporal.get_workflow_handle(await submit()).result()

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return RATE_JOBS / (time.monotonic() - began)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    return round(statistics.quantiles(values, n=100)[int(share * 100) - 1], 1)


async def measure(stack: Stack) -> dict[str, Any]:
    """Alternate raw and ours."""
    settings = TemporalSettings.model_validate(stack.state.settings["temporal"])
    temporal = await connect(settings)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.raw_temporal", env=stack.environment
    )
    async with stack.client() as client:
        raw, ours = _raw(temporal), _ours(client)
        for submit in (raw, ours):
            await temporal.get_workflow_handle(await submit()).result()
        latency = {
            name: await latencies(temporal, submit)
            for name, submit in (("raw", raw), ("ours", ours))
        }
        rates: dict[str, list[float]] = {"raw": [], "ours": []}
        for _ in range(2):
            for name, submit in (("raw", raw), ("ours", ours)):
                rates[name].append(await completed_per_s(temporal, submit))
    worker.terminate()
    await worker.wait()
    p50 = {name: percentile(values, 0.5) for name, values in latency.items()}
    p99 = {name: percentile(values, 0.99) for name, values in latency.items()}
    rate = {name: statistics.mean(values) for name, values in rates.items()}
    return {
        "submit_to_running_ms_p50": p50,
        "submit_to_running_ms_p99": p99,
        "p99_over_raw_ms": round(p99["ours"] - p99["raw"], 1),
        "completed_per_hour": {name: round(value * 3600) for name, value in rate.items()},
        "ratio": round(rate["ours"] / rate["raw"], 3),
        "goals": "p99 < 100 ms over raw; >= 10000 an hour; ratio >= 0.6",
    }


def _raw(temporal: Client) -> Submit:
    async def submit() -> str:
        workflow_id = f"raw-{uuid.uuid4().hex}"
        await temporal.start_workflow("RawNoop", id=workflow_id, task_queue=QUEUE)
        return workflow_id

    return submit


def _ours(client: LoomOSClient) -> Submit:
    async def submit() -> str:
        return (await client.submit_job_from_manifest(manifest(NOOP))).job_id

    return submit
