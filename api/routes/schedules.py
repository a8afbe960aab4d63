"""Schedules of continual learning."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path

from api.bodies import Route
from api.context import Parts, Reader, Submitter
from api.lists import members
from api.named_files import check_named_files
from api.named_in_service import check_guardrails
from api.problems import problem_responses
from loomos.client.delivery_models import ScheduleDetail, ScheduleList
from loomos.jobs.continual import ContinualJob

router = APIRouter(route_class=Route, prefix="/api/v1/schedules", tags=["schedules"])

ScheduleName = Annotated[str, Path(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*$")]


@router.post("", status_code=201, responses=problem_responses(409))
async def create_schedule(job: ContinualJob, parts: Parts, who: Submitter) -> ScheduleDetail:
    """Let an endpoint's stable version be updated on a schedule."""
    check_guardrails(job.spec.rollout, "spec.rollout")
    await check_named_files(job, parts)
    return await parts.schedules.create(job, who.subject)


@router.get("", responses=problem_responses())
async def list_schedules(parts: Parts, who: Reader) -> ScheduleList:
    """Every schedule."""
    names = await parts.schedules.names()
    return ScheduleList(schedules=await members(parts.schedules.describe(name) for name in names))


@router.get("/{name}", responses=problem_responses(404))
async def get_schedule(name: ScheduleName, parts: Parts, who: Reader) -> ScheduleDetail:
    """A schedule with what it did lately."""
    return await parts.schedules.describe(name)


@router.post("/{name}/{verb}", status_code=202, responses=problem_responses(404, 409))
async def steer_schedule(
    name: ScheduleName,
    verb: Literal["pause", "resume", "trigger", "cancel"],
    parts: Parts,
    who: Submitter,
) -> ScheduleDetail:
    """Pause, resume, start a period now, or end the one that is on."""
    if verb == "pause":
        return await parts.schedules.pause(name)
    if verb == "resume":
        return await parts.schedules.resume(name)
    if verb == "cancel":
        return await parts.schedules.cancel(name)
    return await parts.schedules.trigger(name)


@router.delete("/{name}", status_code=204, responses=problem_responses(404))
async def delete_schedule(name: ScheduleName, parts: Parts, who: Submitter) -> None:
    """Delete a schedule; what it made stays."""
    await parts.schedules.delete(name)
