"""Canary rollouts: start, look, steer."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from api.bodies import Route
from api.context import Parts, Reader, Submitter
from api.lists import members
from api.named_in_service import check_guardrails, check_remote
from api.problems import problem_responses
from api.routes.serving import EndpointName
from loomos.client.delivery_models import RolloutList, RolloutVerb, Steering
from loomos.errors import InvalidInput
from loomos.jobs.rollouts import Approval, CanaryRollout, Reason, RolloutStatus
from loomos.registry import Registry

router = APIRouter(route_class=Route, prefix="/api/v1/rollouts", tags=["rollouts"])


@router.post("", status_code=201, responses=problem_responses(404, 409))
async def start_rollout(rollout: CanaryRollout, parts: Parts, who: Submitter) -> RolloutStatus:
    """Put a version on trial at an endpoint."""
    check_remote(rollout.spec.remote, parts.remote_keys, "spec.remote")
    check_guardrails(rollout.spec, "spec")
    await asyncio.to_thread(Registry(parts.store).manifest, rollout.spec.model)
    return await parts.delivery.start_rollout(rollout, who.subject)


@router.get("", responses=problem_responses())
async def list_rollouts(parts: Parts, who: Reader) -> RolloutList:
    """The newest rollout of each endpoint."""
    names = await parts.delivery.rollout_names()
    return RolloutList(rollouts=await members(parts.delivery.rollout(name) for name in names))


@router.get("/{endpoint}", responses=problem_responses(404))
async def get_rollout(endpoint: EndpointName, parts: Parts, who: Reader) -> RolloutStatus:
    """The newest rollout of an endpoint."""
    return await parts.delivery.rollout(endpoint)


@router.delete("/{endpoint}", status_code=204, responses=problem_responses(404, 409))
async def delete_rollout(endpoint: EndpointName, parts: Parts, who: Submitter) -> None:
    """Forget the rollouts that an endpoint has had; what they promoted stays."""
    await parts.delivery.delete_rollout(endpoint)


@router.post("/{endpoint}/{verb}", status_code=202, responses=problem_responses(404, 409))
async def steer_rollout(
    endpoint: EndpointName,
    verb: RolloutVerb,
    parts: Parts,
    who: Submitter,
    steering: Steering | None = None,
) -> RolloutStatus:
    """Approve what a stage has shown, pause, resume, promote, or abort."""
    steering = steering or Steering()
    argument: Approval | Reason = Reason(reason=steering.reason, person=who.subject)
    if verb == "approve":
        if not steering.stage:
            raise InvalidInput("stage: name the stage that waits for approval")
        argument = Approval(stage=steering.stage, person=who.subject)
    return await parts.delivery.steer_rollout(endpoint, verb, argument)
