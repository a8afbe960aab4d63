"""A query that meets a new worker before the workflow's next task does no harm."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid

from temporalio.client import WorkflowHandle, WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from loomos.client.temporal import connect, loom_plugin
from loomos.settings import Settings
from tests.counting import Counting
from tests.stack import Stack
from workers.early_queries import MESSAGE

ROUNDS = 10
"""Whether the query is early is a race; it was in each of 12 rounds tried by hand."""


async def test_a_query_that_runs_ahead_of_its_task_does_not_spoil_the_workflow(
    stack: Stack,
) -> None:
    for _ in range(ROUNDS):
        history = await _signalled_while_no_worker_lives(stack)
        replayer = Replayer(
            workflows=[Counting],
            workflow_runner=UnsandboxedWorkflowRunner(),
            plugins=[loom_plugin()],
        )
        await replayer.replay_workflow(history)
        if any(_failure(event) == MESSAGE for event in history.events):
            return
    raise AssertionError(f"no query was early in {ROUNDS} rounds")


async def _signalled_while_no_worker_lives(stack: Stack) -> WorkflowHistory:
    settings = Settings.model_validate(stack.state.settings)
    client = await connect(settings.temporal)
    queue = f"counting-{uuid.uuid4().hex[:8]}"
    first = _worker(stack, queue)
    handle = await client.start_workflow(Counting.run, 4, id=queue, task_queue=queue)
    await handle.signal(Counting.count)
    await _processed(handle, signals=1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    early = asyncio.create_task(handle.query(Counting.signals))
    await asyncio.sleep(0.1)  # for the server to have the query wait for a worker
    await handle.signal(Counting.count)
    second = _worker(stack, queue)
    try:
        assert await early in (1, 2)
        await handle.signal(Counting.count)
        await _processed(handle, signals=3)
    finally:
        second.send_signal(signal.SIGKILL)
        second.wait()
    third = _worker(stack, queue)
    try:
        await handle.signal(Counting.count)
        async with asyncio.timeout(60):  # without the guard it never ends
            wakes = await handle.result()
        history = await handle.fetch_history()
        timers = [e for e in history.events if e.HasField("timer_started_event_attributes")]
        assert wakes == len(timers)
        return history
    finally:
        third.kill()
        third.wait()


def _worker(stack: Stack, queue: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.counting", queue],
        env={**os.environ, **stack.environment},
        stderr=subprocess.DEVNULL,
    )


async def _processed(handle: WorkflowHandle[Counting, int], signals: int) -> None:
    """Wait until tasks have completed for so many signals."""
    async with asyncio.timeout(60):
        while True:
            seen = 0
            async for event in handle.fetch_history_events():
                seen += event.HasField("workflow_execution_signaled_event_attributes")
                if event.HasField("workflow_task_completed_event_attributes") and seen >= signals:
                    return
            await asyncio.sleep(0.05)


def _failure(event: object) -> str:
    return event.workflow_task_failed_event_attributes.failure.message  # type: ignore[attr-defined]
