"""Jobs that wait for jobs.

A job asks those that it depends on to tell it when they end. Whoever ended without a word, or was
ended from outside, is found by looking now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.states import JobState
    from loomos.jobs.training import JobEnded, JobsLook
    from loomos.manifest import Dependency
    from workflows import calls

LOOK_INTERVAL = timedelta(minutes=5)
"""Whoever is not told of an end finds out by looking."""
MOST_DEPENDENTS = 1000
"""Jobs that are remembered, to be told. Each costs three events, and a history has an end."""
MOST_TOLD = 50
"""Jobs that are told at a time."""
TOLD_TOGETHER = "dependents-are-told-together"
"""Patch since which jobs are told side by side, and only so many."""


class Dependencies:
    """What one job waits for, and who waits for it.

    Args:
        job_id: the job.
        wanted: what it depends on.
        dependents: jobs that have asked to be told of its end.
    """

    def __init__(self, job_id: str, wanted: Sequence[Dependency], dependents: list[str]) -> None:
        self._job_id, self._wanted = job_id, wanted
        self.dependents = dependents
        self._ended: dict[str, JobState] = {}

    @property
    def pending(self) -> list[str]:
        """Jobs that have not ended."""
        return [each.job for each in self._wanted if each.job not in self._ended]

    async def wait(self) -> None:
        """Until every job has ended that this one depends on.

        Raises:
            ApplicationError: one failed that must not.
        """
        for job_id in self.pending:
            await _signal(job_id, "add_dependent", self._job_id)
        while self.pending:
            found = await calls.look_at_jobs(JobsLook(job_ids=self.pending))
            self._ended |= found.ended
            self._refuse_failed()
            if self.pending:
                await self._until_news()

    async def _until_news(self) -> None:
        known = len(self._ended)
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: len(self._ended) > known, timeout=LOOK_INTERVAL)
        self._refuse_failed()

    def hear(self, ended: JobEnded) -> None:
        """A job tells of its end."""
        self._ended[ended.job_id] = ended.state

    def add(self, job_id: str) -> None:
        """A job wants to be told of this one's end; beyond a number they have to look."""
        if len(self.dependents) >= MOST_DEPENDENTS and workflow.patched(TOLD_TOGETHER):
            return
        if job_id not in self.dependents:
            self.dependents.append(job_id)

    async def tell(self, state: JobState) -> None:
        """Tell those who wait, and those who come meanwhile as long as they are not too many."""
        if not self.dependents:
            return
        ended = JobEnded(job_id=self._job_id, state=state)
        if not workflow.patched(TOLD_TOGETHER):
            while self.dependents:
                await _signal(self.dependents.pop(0), "dependency_ended", ended)
            return
        for _ in range(0, MOST_DEPENDENTS, MOST_TOLD):
            told, self.dependents = self.dependents[:MOST_TOLD], self.dependents[MOST_TOLD:]
            await asyncio.gather(*(_signal(job_id, "dependency_ended", ended) for job_id in told))

    def _refuse_failed(self) -> None:
        for each in self._wanted:
            state = self._ended.get(each.job)
            if each.on_failure == "fail" and state not in (None, JobState.COMPLETED):
                raise ApplicationError(
                    f"depends on {each.job}, which ended as {state}",
                    type="DependencyFailed",
                    non_retryable=True,
                )


async def _signal(job_id: str, name: str, message: object) -> None:
    """Signal a job; one that is gone needs no telling."""
    try:
        await workflow.get_external_workflow_handle(job_id).signal(name, message)
    except ApplicationError as error:
        workflow.logger.info("job %s is gone: %s", job_id, error)
