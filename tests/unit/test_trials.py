"""What a trial answers for, and what is its node's fault."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.failures import application_error
from activities.trials import TrialActivities
from loomos.jobs.experiments import TrialRequest, TrialState
from loomos.settings import Settings, StorageSettings
from tests.unit.test_reports import assignment


class Failing:
    """Trains nothing: ranks end with this error."""

    def __init__(self, kind: str, scratch: Path) -> None:
        self._kind, self.scratch = kind, scratch

    async def run_ranks(self, job: Any, *, tells_job: bool) -> Any:
        raise application_error(self._kind, f"rank 0: {self._kind}: no", retryable=True)


@pytest.mark.parametrize(
    ("kind", "is_trials"), [("Unavailable", False), ("ValueError", True), ("AttemptFailed", True)]
)
async def test_an_outage_of_the_store_is_no_failure_of_the_trial(
    tmp_path: Path, kind: str, is_trials: bool
) -> None:
    job = assignment()
    train: Any = Failing(kind, tmp_path)
    settings = Settings(storage=StorageSettings(url=f"file://{tmp_path}/store"))
    activities = TrialActivities(settings, train, job.nodes[0], slots=1)
    request = TrialRequest(
        experiment_id="e",
        number=3,
        params={},
        seed=0,
        metrics=["validation_loss"],
        training=job.spec,
        inputs=job.inputs,
        most_reports=10,
        timeout=timedelta(minutes=1),
    )
    if is_trials:
        result = await ActivityEnvironment().run(activities.run_trial, request)
        assert (result.state, result.error) == (TrialState.FAILED, f"rank 0: {kind}: no")
    else:
        with pytest.raises(ApplicationError, match="Unavailable") as failed:
            await ActivityEnvironment().run(activities.run_trial, request)
        assert not failed.value.non_retryable
    await activities.close()
