"""Campaigns: start, look, end."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api.bodies import Route
from api.context import Parts, Reader, Submitter
from api.problems import problem_responses
from api.routes.jobs import IdempotencyKey
from loomos.client.campaign_models import CampaignList
from loomos.jobs.campaigns import CampaignStatus
from loomos.manifest import RLCampaign

router = APIRouter(route_class=Route, prefix="/api/v1/campaigns", tags=["campaigns"])

CampaignId = Annotated[
    str, Path(min_length=1, max_length=128, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
]
SHOWN = 50


@router.post("", status_code=201, responses=problem_responses(409))
async def start_campaign(
    campaign: RLCampaign, parts: Parts, who: Submitter, idempotency_key: IdempotencyKey = None
) -> CampaignStatus:
    """Start a campaign. With an `Idempotency-Key`, sending it again gives the same one."""
    return await parts.campaigns.start(campaign, who.subject, idempotency_key)


@router.get("", responses=problem_responses())
async def list_campaigns(parts: Parts, who: Reader) -> CampaignList:
    """The newest campaigns."""
    return CampaignList(campaigns=await parts.campaigns.newest(SHOWN))


@router.get("/{campaign_id}", responses=problem_responses(404))
async def get_campaign(campaign_id: CampaignId, parts: Parts, who: Reader) -> CampaignStatus:
    """A campaign, with its rounds and its policies."""
    return await parts.campaigns.get(campaign_id)


@router.post("/{campaign_id}/cancel", status_code=202, responses=problem_responses(404, 409))
async def cancel_campaign(campaign_id: CampaignId, parts: Parts, who: Submitter) -> CampaignStatus:
    """End a campaign and the trainings that run."""
    return await parts.campaigns.cancel(campaign_id)


@router.delete("/{campaign_id}", status_code=204, responses=problem_responses(404, 409))
async def delete_campaign(campaign_id: CampaignId, parts: Parts, who: Submitter) -> None:
    """Delete a campaign that has ended, with the jobs that it started; models stay."""
    await parts.campaigns.delete(campaign_id)
