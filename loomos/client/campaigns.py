"""Campaigns straight on Temporal. The gateway stands on this."""

from __future__ import annotations

import uuid

from temporalio.client import Client, WorkflowExecution

from loomos.client.answers import answered
from loomos.client.campaign_models import CampaignSummary
from loomos.client.documents import DocumentKind, DocumentWorkflows, summary_fields
from loomos.errors import Conflict
from loomos.jobs.campaigns import CampaignInput, CampaignStatus
from loomos.jobs.names import CAMPAIGN_KIND, SUMMARY_MEMO, campaign_workflow_id
from loomos.jobs.states import JobState
from loomos.manifest import RLCampaign

CAMPAIGNS = DocumentKind(kind=CAMPAIGN_KIND, workflow="RLCampaign", noun="campaign")


class CampaignClient:
    """Starts, finds and ends campaigns."""

    def __init__(self, client: Client) -> None:
        self._workflows = DocumentWorkflows(client, CAMPAIGNS)

    async def start(
        self, campaign: RLCampaign, owner: str, idempotency_key: str | None = None
    ) -> CampaignStatus:
        """Start a campaign; the same key and document give the same one, once.

        Raises:
            Conflict: the key was used for another document.
        """
        metadata, spec = campaign.metadata, campaign.spec
        run = CampaignInput(
            campaign_id=campaign_workflow_id(metadata.name, idempotency_key or uuid.uuid4().hex),
            name=metadata.name,
            owner=owner,
            project=metadata.project,
            spec=spec,
        )
        await self._workflows.start(
            run.campaign_id,
            run,
            campaign,
            metadata,
            owner=owner,
            state=JobState.QUEUED.value,
            priority=spec.priority,
            summary=f"{spec.algorithm} of {len(spec.members)} members for {owner}",
        )
        return await self.get(run.campaign_id)

    async def get(self, campaign_id: str) -> CampaignStatus:
        """A campaign.

        Raises:
            NotFound: there is none.
        """
        return await self._workflows.query(campaign_id, "status", CampaignStatus)

    async def newest(self, limit: int) -> list[CampaignSummary]:
        """The newest campaigns, newest first, by one visibility call."""
        return [await _summary(execution) for execution in await self._workflows.newest(limit)]

    async def cancel(self, campaign_id: str) -> CampaignStatus:
        """End a campaign and the trainings that run.

        Raises:
            NotFound: there is no such campaign.
            Conflict: it has ended.
        """
        before = await self.get(campaign_id)
        if before.state.is_final:
            raise Conflict(f"the campaign {campaign_id} is {before.state}; nothing to cancel")
        await answered(self._workflows.handle(campaign_id).cancel())
        return await self.get(campaign_id)


async def _summary(execution: WorkflowExecution) -> CampaignSummary:
    return CampaignSummary(
        campaign_id=execution.id,
        **summary_fields(execution, JobState.QUEUED.value),
        **await execution.memo_value(SUMMARY_MEMO, {}),
    )
