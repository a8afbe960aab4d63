"""A workflow that counts signals, and a worker for it: `python -m tests.counting QUEUE`."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from temporalio import workflow
from temporalio.worker import UnsandboxedWorkflowRunner, Worker


@workflow.defn
class Counting:
    """Each wake-up costs a timer, so one too many shows in the history."""

    def __init__(self) -> None:
        self._signals = 0
        self._wakes = 0

    @workflow.run
    async def run(self, signals: int) -> int:
        while self._signals < signals:
            seen = self._signals
            await workflow.wait_condition(
                lambda seen=seen: self._signals > seen, timeout=timedelta(hours=1)
            )
            self._wakes += 1
        return self._wakes

    @workflow.signal
    def count(self) -> None:
        self._signals += 1

    @workflow.query
    def signals(self) -> int:
        return self._signals


async def main(queue: str) -> None:
    from loomos.client.temporal import connect
    from loomos.settings import load_settings
    from workers.early_queries import EarlyQueryGuard

    worker = Worker(
        await connect(load_settings().temporal),
        task_queue=queue,
        workflows=[Counting],
        workflow_runner=EarlyQueryGuard(UnsandboxedWorkflowRunner()),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
