"""Finds what a name means, straight on Temporal. The gateway stands on this."""

from __future__ import annotations

from temporalio.client import Client

from loomos.client.answers import answered
from loomos.client.names import MOST_NAMES, NameList
from loomos.jobs.names import (
    CAMPAIGN_KIND,
    ENDPOINT_KIND,
    EXPERIMENT_KIND,
    JOB_KIND,
    ROLLOUT_KIND,
    VERIFICATION_KIND,
    verification_workflow_id,
)
from loomos.search_attributes import KIND, NAME, quoted

_KINDS = {
    "job": (JOB_KIND, ""),
    "experiment": (EXPERIMENT_KIND, ""),
    "campaign": (CAMPAIGN_KIND, ""),
    "verification": (VERIFICATION_KIND, verification_workflow_id("")),
    "rollout": (ROLLOUT_KIND, "canary/"),
    "endpoint": (ENDPOINT_KIND, "endpoint/"),
}
"""By kind: how search attributes call it, and what its workflows' ids begin with."""
WORKFLOW_KINDS = tuple(_KINDS)
"""Kinds that are found here."""
_SCANNED = 200
"""Runs looked at, at most: a job that was restarted often has many."""


class Finder:
    """Looks workflows up by name or by the beginning of their id."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def find(self, kind: str, text: str) -> NameList:
        """What `text` may mean: those of that name, else those whose id begins with it."""
        name, root = _KINDS[kind]
        of_kind = f"{KIND.name} = '{name}' AND ExecutionStatus != 'ContinuedAsNew'"
        if kind == "endpoint":
            of_kind += " AND ExecutionStatus = 'Running'"
        for condition in (
            f"WorkflowId = {quoted(root + text)}",
            f"{NAME.name} = {quoted(text)}",
            f"WorkflowId STARTS_WITH {quoted(root + text)}",
        ):
            found = await self._ids(f"{of_kind} AND {condition}")
            if found:
                ids = [one.removeprefix(root) for one in found]
                return NameList(ids=ids[:MOST_NAMES], is_complete=len(ids) <= MOST_NAMES)
        return NameList(ids=[])

    async def _ids(self, query: str) -> list[str]:
        """Workflows' ids, newest first."""
        found: dict[str, None] = {}

        async def look() -> None:
            async for execution in self._client.list_workflows(query, limit=_SCANNED):
                found.setdefault(execution.id)
                if len(found) > MOST_NAMES:
                    return

        await answered(look())
        return list(found)
