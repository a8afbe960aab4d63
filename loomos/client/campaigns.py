"""Campaigns straight on Temporal. The gateway stands on this."""

from __future__ import annotations

from pydantic import ValidationError
from temporalio.client import Client, WorkflowExecution

from loomos.client.campaign_models import CampaignSummary
from loomos.client.documents import DocumentWorkflows, read_memo, summary_fields
from loomos.client.runs import RunKind, known_facts, known_state
from loomos.errors import Conflict
from loomos.jobs.campaigns import CampaignInput, CampaignStatus
from loomos.jobs.names import CAMPAIGN_KIND, SUMMARY_MEMO
from loomos.jobs.states import JobState
from loomos.manifest import RLCampaign
from loomos.storage import Store
from loomos.storage.layout import job_prefix

CAMPAIGNS = RunKind(kind=CAMPAIGN_KIND, workflow="RLCampaign", noun="campaign", command="campaigns")


class CampaignClient:
    """Starts, finds and ends campaigns."""

    def __init__(self, client: Client, store: Store) -> None:
        self._workflows = DocumentWorkflows(client, CAMPAIGNS, store)

    async def start(
        self, campaign: RLCampaign, owner: str, idempotency_key: str | None = None
    ) -> CampaignStatus:
        """Start a campaign; the same key and document give the same one, once.

        Raises:
            Conflict: the key was used for another document.
        """
        metadata, spec = campaign.metadata, campaign.spec
        campaign_id, _ = await self._workflows.start(
            lambda run_id: CampaignInput(
                campaign_id=run_id,
                name=metadata.name,
                owner=owner,
                project=metadata.project,
                spec=spec,
            ),
            campaign,
            metadata,
            owner=owner,
            key=idempotency_key,
            state=JobState.QUEUED.value,
            priority=spec.priority,
            summary=f"{spec.algorithm} of {len(spec.members)} members for {owner}",
        )
        return await self.get(campaign_id)

    async def get(self, campaign_id: str) -> CampaignStatus:
        """A campaign; as Temporal knows it where its workflow cannot say.

        Raises:
            NotFound: there is none.
        """
        seen = await self._workflows.look(
            campaign_id, CampaignStatus, is_final=lambda status: status.state.is_final
        )
        state = known_state(seen.execution, JobState, JobState.QUEUED)
        if seen.answer is not None:
            if seen.ended and not seen.answer.state.is_final:
                return seen.answer.model_copy(
                    update={
                        "state": state,
                        "message": "ended from outside",
                        "finished_at": seen.execution.close_time,
                    }
                )
            return seen.answer
        given = await self._workflows.first_input(campaign_id, CampaignInput)
        return CampaignStatus(
            campaign_id=campaign_id,
            **known_facts(seen.execution),
            state=state,
            message=seen.reason,
            spec=given.spec if given else None,
            phase="",
            started_at=seen.execution.start_time,
            finished_at=seen.execution.close_time,
            partial=seen.reason,
        )

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
        await self._workflows.end(campaign_id)
        return await self.get(campaign_id)

    async def delete(self, campaign_id: str) -> None:
        """Delete a campaign that has ended, with the jobs that it started; models stay.

        Raises:
            NotFound: there is none.
            Conflict: it runs.
        """
        await self._workflows.delete(campaign_id, [job_prefix(campaign_id)])


async def _summary(execution: WorkflowExecution) -> CampaignSummary:
    facts = {
        "campaign_id": execution.id,
        **summary_fields(execution),
        "state": known_state(execution, JobState, JobState.QUEUED),
    }
    try:
        return CampaignSummary(**facts, **await read_memo(execution, SUMMARY_MEMO))
    except ValidationError:  # noted by another LoomOS
        return CampaignSummary(**facts)
