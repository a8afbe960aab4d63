"""Campaigns over HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

from loomos.client.campaign_models import CampaignList
from loomos.client.transport import Transport
from loomos.jobs.campaigns import CampaignStatus
from loomos.manifest import RLCampaign

FOLLOW_S = 0.5


class CampaignsApi:
    """Rounds of trainings whose policies are averaged: `client.campaigns`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def start(
        self, campaign: RLCampaign, *, idempotency_key: str | None = None
    ) -> CampaignStatus:
        """Start a campaign.

        A key is made up if none is given, so that a retry after a lost answer starts once.

        Raises:
            Conflict: the key was used for another campaign.
        """
        return await self._transport.call(
            "POST",
            "/campaigns",
            CampaignStatus,
            json=campaign.model_dump(mode="json", exclude_unset=True),
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )

    async def get(self, campaign_id: str) -> CampaignStatus:
        """A campaign, with its rounds and its policies."""
        return await self._transport.call("GET", f"/campaigns/{campaign_id}", CampaignStatus)

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

    async def cancel(self, campaign_id: str) -> CampaignStatus:
        """End a campaign and its trainings.

        Raises:
            Conflict: it has ended.
        """
        path = f"/campaigns/{campaign_id}/cancel"
        return await self._transport.call("POST", path, CampaignStatus)

    async def list(self) -> CampaignList:
        """The newest campaigns."""
        return await self._transport.call("GET", "/campaigns", CampaignList)
