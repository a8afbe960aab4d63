"""Campaigns over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from loomos.client.campaign_models import CampaignList
from loomos.client.documents_api import DocumentsApi
from loomos.jobs.campaigns import CampaignStatus
from loomos.manifest import RLCampaign

FOLLOW_S = 0.5


class CampaignsApi(DocumentsApi[RLCampaign, CampaignStatus, CampaignList]):
    """Rounds of trainings whose policies are averaged: `client.campaigns`."""

    path = "/campaigns"
    status = CampaignStatus
    page = CampaignList

    async def follow(self, campaign_id: str) -> AsyncIterator[CampaignStatus]:
        """The campaign as it is, and again whenever something happened, until it is over."""
        told = -1
        while True:
            found = await self.get(campaign_id)
            if len(found.timeline) != told:
                told = len(found.timeline)
                yield found
            if found.state.is_final:
                return
            await asyncio.sleep(FOLLOW_S)
