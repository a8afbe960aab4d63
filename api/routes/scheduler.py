"""How the cluster decides who gets which nodes."""

from __future__ import annotations

from fastapi import APIRouter

from api.bodies import Route
from api.context import Admin, Parts, Reader
from api.problems import problem_responses
from loomos.jobs.cluster import AdviceList, ClusterStatus, SchedulerConfig

router = APIRouter(route_class=Route, prefix="/api/v1/scheduler", tags=["scheduler"])


@router.get("/config", responses=problem_responses())
async def get_config(parts: Parts, who: Reader) -> SchedulerConfig:
    """The rules in force."""
    return (await parts.cluster.page()).config


@router.put("/config", responses=problem_responses(400, 404))
async def put_config(config: SchedulerConfig, parts: Parts, who: Admin) -> ClusterStatus:
    """Decide in another way from now on; answers with the cluster after it."""
    return await parts.cluster.configure(config)


@router.get("/advice", responses=problem_responses())
async def advice(parts: Parts, who: Reader) -> AdviceList:
    """What waiting and running jobs could ask for differently; each was tried on the rules."""
    return await parts.cluster.advice()
