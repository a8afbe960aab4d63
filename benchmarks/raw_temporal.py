"""The peers of `submission` and `weaver_throughput`: no-op activities, straight on Temporal."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.worker import Worker

QUEUE = "raw-noop"


@activity.defn
async def raw_noop() -> None:
    """Do nothing."""


@workflow.defn
class RawNoop:
    """One activity."""

    @workflow.run
    async def run(self) -> None:
        """Do nothing, durably."""
        await workflow.execute_activity(raw_noop, start_to_close_timeout=timedelta(seconds=10))


@workflow.defn
class FanOut:
    """Many activities, so many in flight: the peer of `weaver_throughput`."""

    @workflow.run
    async def run(self, plan: list[int]) -> None:
        """Do nothing `plan[0]` times, `plan[1]` at a time."""
        count, in_flight = plan
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await workflow.execute_activity(
                    raw_noop, start_to_close_timeout=timedelta(seconds=10)
                )

        await asyncio.gather(*(caller() for _ in range(in_flight)))


async def main(stop: asyncio.Event) -> None:
    """A worker with the control worker's settings."""
    from loomos.client.temporal import connect
    from loomos.settings import load_settings
    from workers.build import deployment

    client = await connect(load_settings().temporal)
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[RawNoop, FanOut],
        activities=[raw_noop],
        deployment_config=deployment(),
        max_concurrent_workflow_task_polls=10,
        max_concurrent_activities=int(os.environ.get("RAW_SLOTS", "100")),
    )
    async with worker:
        await stop.wait()


if __name__ == "__main__":
    from loomos.runtime import run_process

    run_process(main)
