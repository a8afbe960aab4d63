"""Schedules of continual learning straight on Temporal. The gateway stands on this."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
)

from loomos.client.answers import answered
from loomos.client.delivery import search_attributes
from loomos.client.delivery_models import ScheduleDetail
from loomos.client.runs import RunKind, Runs
from loomos.continual.memory import read_state
from loomos.errors import Conflict, InvalidInput, NotFound, Unavailable
from loomos.jobs.continual import ContinualInput, ContinualJob, ContinualState
from loomos.jobs.names import CONTINUAL_KIND, CONTROL_QUEUE, schedule_id
from loomos.storage import Store

SHOWN_UPDATES = 20
PERIODS = RunKind(
    kind=CONTINUAL_KIND, workflow="ContinualLearning", noun="period", command="schedules"
)


class ScheduleClient:
    """Makes and steers schedules.

    Args:
        client: Temporal.
        store: where schedules remember what they did.
    """

    def __init__(self, client: Client, store: Store) -> None:
        self._client, self._store = client, store
        self._periods = Runs(client, PERIODS)

    async def create(self, job: ContinualJob, owner: str) -> ScheduleDetail:
        """Start a schedule.

        Raises:
            Conflict: there is one of this name.
            InvalidInput: the cron expression or the time zone is malformed.
        """
        name, spec = job.metadata.name, job.spec
        schedule = Schedule(
            action=ScheduleActionStartWorkflow(
                "ContinualLearning",
                ContinualInput(name=name, owner=owner, project=job.metadata.project, spec=spec),
                id=f"continual-run/{name}",
                task_queue=CONTROL_QUEUE,
                task_timeout=timedelta(seconds=5),
                typed_search_attributes=search_attributes(CONTINUAL_KIND, name, owner),
            ),
            spec=ScheduleSpec(cron_expressions=[spec.cron], time_zone_name=spec.time_zone),
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=spec.catch_up),
            state=ScheduleState(note=f"{spec.endpoint}, for {owner}"),
        )
        try:
            await answered(self._client.create_schedule(schedule_id(name), schedule))
        except ScheduleAlreadyRunningError:
            raise Conflict(f"there is a schedule {name!r}; delete it first") from None
        except InvalidInput as error:
            raise InvalidInput(f"spec.cron, spec.time_zone: {error}") from None
        return await self.describe(name)

    async def describe(self, name: str) -> ScheduleDetail:
        """A schedule.

        Raises:
            NotFound: there is none.
        """
        try:
            found: ScheduleDescription = await answered(self._handle(name).describe())
        except NotFound:
            raise NotFound(f"no schedule {name!r}; `loomos schedules list` shows them") from None
        period, why = await self._period(found)
        state = ContinualState()
        try:
            state = await asyncio.to_thread(read_state, self._store, name)
        except (Unavailable, ValueError) as error:
            why = why or f"what it did cannot be read: {str(error).splitlines()[0]}"
        return ScheduleDetail(
            name=name,
            owner=period.owner if period else "",
            spec=period.spec if period else None,
            is_paused=found.schedule.state.paused,
            is_running=bool(found.info.running_actions),
            next_at=found.info.next_action_times[0] if found.info.next_action_times else None,
            updates=state.updates[-SHOWN_UPDATES:],
            partial=why,
        )

    async def _period(self, found: ScheduleDescription) -> tuple[ContinualInput | None, str]:
        """What each period is started with; or why that is not known."""
        action = found.schedule.action
        if not isinstance(action, ScheduleActionStartWorkflow):
            return None, "it starts no workflow"
        try:
            decoded = await self._client.data_converter.decode(list(action.args), [ContinualInput])
        except Exception as error:  # whatever a decoder makes of bytes from anywhere
            return None, f"what it was made with cannot be read: {str(error).splitlines()[0]}"
        if not decoded or not isinstance(decoded[0], ContinualInput):
            return None, "what it was made with cannot be read"
        return decoded[0], ""

    async def cancel(self, name: str) -> ScheduleDetail:
        """End the period that is on; it is terminated if it cannot cancel itself.

        Raises:
            NotFound: there is no such schedule.
            Conflict: no period is on.
        """
        if not await self._end_periods(name):
            raise Conflict(f"no period of the schedule {name} is on; nothing to cancel")
        return await self.describe(name)

    async def _end_periods(self, name: str) -> int:
        await self.describe(name)
        found: ScheduleDescription = await answered(self._handle(name).describe())
        running = [
            action.workflow_id
            for action in found.info.running_actions
            if isinstance(action, ScheduleActionExecutionStartWorkflow)
        ]
        for workflow_id in running:
            await self._periods.end(workflow_id)
        return len(running)

    async def names(self) -> list[str]:
        """Every schedule."""
        found: list[str] = []
        async for schedule in await self._client.list_schedules():
            prefix = schedule_id("")
            if schedule.id.startswith(prefix):
                found.append(schedule.id.removeprefix(prefix))
        return sorted(found)

    async def pause(self, name: str) -> ScheduleDetail:
        """Start no more periods."""
        await self.describe(name)
        await answered(self._handle(name).pause())
        return await self.describe(name)

    async def resume(self, name: str) -> ScheduleDetail:
        """Start periods again."""
        await self.describe(name)
        await answered(self._handle(name).unpause())
        return await self.describe(name)

    async def trigger(self, name: str) -> ScheduleDetail:
        """Start a period now, unless one is on."""
        await self.describe(name)
        await answered(self._handle(name).trigger())
        return await self.describe(name)

    async def delete(self, name: str) -> None:
        """Delete a schedule, and end the period that is on.

        What it made stays, and so does what it remembers.
        """
        await self._end_periods(name)
        await answered(self._handle(name).delete())

    def _handle(self, name: str) -> ScheduleHandle:
        return self._client.get_schedule_handle(schedule_id(name))
