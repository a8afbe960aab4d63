"""Collecting garbage: parts of it, each bounded, with heartbeats, safe to do again."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from loomos.client.schedules import ScheduleClient
from loomos.continual.memory import read_state
from loomos.errors import NotFound
from loomos.jobs.names import (
    EXPERIMENT_KIND,
    JOB_KIND,
    VERIFICATION_KIND,
    rollout_workflow_id,
)
from loomos.jobs.retention import SweepRequest, Swept
from loomos.retention.sweeps import Life, Sweeper
from loomos.search_attributes import KIND
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import RETENTION_SINCE, inputs_prefix

HEARTBEAT_INTERVAL_S = 2.0
MOST_UNMARKED = 1000


class RetentionActivities:
    """Activities of the control worker."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._rules = settings.retention
        self._store = open_store(settings.storage)
        self._lives = TemporalLives(client, self._store)

    @activity.defn
    async def sweep_store(self, request: SweepRequest) -> Swept:
        """Free what is garbage in one part of a class."""
        doing = [""]

        def say(what: str) -> None:
            doing[0] = what

        async def beat() -> None:
            while True:
                activity.heartbeat(doing[0])
                await asyncio.sleep(HEARTBEAT_INTERVAL_S)

        beating = asyncio.create_task(beat())
        try:
            return await Sweeper(self._store, self._rules, self._lives, say).sweep(request)
        finally:
            beating.cancel()


class TemporalLives:
    """Which runs go on, by asking Temporal."""

    def __init__(self, client: Client, store: Store) -> None:
        self._client, self._store = client, store

    async def of(self, run_id: str) -> Life | None:
        """See `loomos.retention.sweeps.Lives`."""
        try:
            found = await self._client.get_workflow_handle(run_id).describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return None
        return Life(
            lives=found.status == WorkflowExecutionStatus.RUNNING,
            completed=found.status == WorkflowExecutionStatus.COMPLETED,
            ended_at=found.close_time,
        )

    async def verifications(self) -> int:
        """See `loomos.retention.sweeps.Lives`."""
        counted = await self._client.count_workflows(
            f'{KIND.name} = "{VERIFICATION_KIND}" AND ExecutionStatus = "Running"'
        )
        return counted.count

    async def rollout(self, endpoint: str) -> bool:
        """See `loomos.retention.sweeps.Lives`."""
        life = await self.of(rollout_workflow_id(endpoint))
        return life is not None and life.lives

    async def unread(self, endpoint: str) -> list[dict[str, str]]:
        """See `loomos.retention.sweeps.Lives`."""
        schedules = ScheduleClient(self._client, self._store)
        found: list[dict[str, str]] = []
        for name in await schedules.names():
            with contextlib.suppress(NotFound):  # it was deleted meanwhile
                schedule = await schedules.describe(name)
                spec = schedule.spec  # none: it cannot be read, and may be about any endpoint
                if spec is None or (spec.endpoint == endpoint and spec.collect.captures):
                    state = await asyncio.to_thread(read_state, self._store, name)
                    found.append(dict(state.cursors))
        return found

    async def unmarked(self) -> int:
        """See `loomos.retention.sweeps.Lives`."""
        since = await asyncio.to_thread(self._since)
        kinds = f'{KIND.name} IN ("{JOB_KIND}", "{EXPERIMENT_KIND}")'
        query = f'{kinds} AND ExecutionStatus = "Running" AND StartTime < "{since}"'
        count = 0
        async for run in self._client.list_workflows(query, limit=MOST_UNMARKED):
            count += not await asyncio.to_thread(self._is_marked, run.id)
        return count

    def _is_marked(self, run_id: str) -> bool:
        return next(iter(self._store.objects(inputs_prefix(run_id))), None) is not None

    def _since(self) -> str:
        """From when on runs say what they read, in RFC 3339."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._store.put_if_absent(RETENTION_SINCE, now.encode())
        return self._store.get(RETENTION_SINCE).decode()
