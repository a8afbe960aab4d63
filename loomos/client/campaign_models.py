"""What the gateway says of campaigns in lists."""

from __future__ import annotations

from datetime import datetime

from loomos.client.models import Answer
from loomos.jobs.states import JobState


class CampaignSummary(Answer):
    """A campaign as lists show it."""

    campaign_id: str
    """Its id."""
    name: str
    """From the document."""
    owner: str
    """Who started it."""
    state: JobState
    """Where it is."""
    started_at: datetime
    """When its newest run began."""
    finished_at: datetime | None = None
    """When it ended."""
    rounds: int | None = None
    """Rounds that it had, once it has ended."""
    returns: dict[str, float] = {}
    """Mean return of each policy, once it has ended."""


class CampaignList(Answer):
    """Campaigns."""

    campaigns: list[CampaignSummary]
    """Newest first."""
