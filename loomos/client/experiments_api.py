"""Experiments over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from loomos.client.documents_api import DocumentsApi
from loomos.client.experiment_models import ExperimentList
from loomos.jobs.experiments import ExperimentStatus, TrialPage, TrialRecord
from loomos.manifest import Experiment

FOLLOW_S = 0.5


class ExperimentsApi(DocumentsApi[Experiment, ExperimentStatus, ExperimentList]):
    """Searches over parameters: `client.experiments`."""

    path = "/experiments"
    status = ExperimentStatus
    page = ExperimentList

    async def trials(self, experiment_id: str, *, since: int = 0, limit: int = 500) -> TrialPage:
        """Finished trials, in the order in which they finished."""
        path = f"/experiments/{experiment_id}/trials"
        return await self._transport.call(
            "GET", path, TrialPage, params=[("since", since), ("limit", limit)]
        )

    async def all_trials(self, experiment_id: str) -> list[TrialRecord]:
        """Every finished trial, by number."""
        found: list[TrialRecord] = []
        while page := await self.trials(experiment_id, since=len(found)):
            found += page.trials
            if not page.trials:
                break
        return sorted(found, key=lambda trial: trial.number)

    async def follow(self, experiment_id: str) -> AsyncIterator[TrialRecord]:
        """Each trial as it finishes, those finished already first, until the experiment is over."""
        since = 0
        while True:
            page = await self.trials(experiment_id, since=since)
            for trial in page.trials:
                yield trial
            since = page.next
            if page.is_over:
                return
            if not page.trials:
                await asyncio.sleep(FOLLOW_S)

    async def stop(self, experiment_id: str, reason: str = "") -> ExperimentStatus:
        """Start no more trials; those that run end.

        Raises:
            Conflict: it has ended, or stops already.
        """
        path = f"/experiments/{experiment_id}/stop"
        return await self._transport.call("POST", path, ExperimentStatus, json={"reason": reason})
