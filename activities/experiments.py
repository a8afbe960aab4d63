"""What a sweep asks of control workers: the next points, and what earlier experiments found."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from activities.failures import application_error
from activities.json_lines import ChildDied, JsonLinesProcess
from loomos.errors import InvalidInput, NotFound, Unavailable
from loomos.jobs.experiments import (
    ExperimentStatus,
    Known,
    StudyState,
    Suggested,
    SuggestRequest,
    TrialPage,
    TrialsQuery,
    TrialState,
    WarmStart,
    WarmStartRequest,
)
from loomos.weaver.space import contains

MOST_STUDIES = 8
"""Studies kept alive by one control worker; one that is let go is made again when asked for."""
HEARTBEAT_INTERVAL_S = 1.0
MOST_EARLIER = 1000
"""Most trials that earlier experiments give; the newest count."""


class ExperimentActivities:
    """Activities of a control worker. Each experiment's study lives in a process of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._studies: OrderedDict[str, tuple[JsonLinesProcess, asyncio.Lock]] = OrderedDict()

    @activity.defn
    async def suggest(self, request: SuggestRequest) -> Suggested:
        """The next points; a study that is not here any more is made again from the workflow.

        Raises:
            InvalidInput: the space is empty.
            Unavailable: the study's process died.
        """
        process, lock = await self._process(request.study)
        async with lock, _heartbeats():
            try:
                answer = await self._ask(process, request)
                if "needs" in answer:
                    state = await self._client.get_workflow_handle(
                        request.experiment_id, run_id=activity.info().workflow_run_id
                    ).query("study", result_type=StudyState)
                    answer = await self._ask(process, request, state)
            except ChildDied as error:
                raise Unavailable(f"the process of the study died ({error})") from None
        if "error" in answer:
            said = answer["error"]
            raise application_error(said["type"], said["message"], retryable=False)
        return Suggested.model_validate(answer["suggested"])

    async def _ask(
        self, process: JsonLinesProcess, request: SuggestRequest, state: StudyState | None = None
    ) -> dict[str, Any]:
        question = json.dumps({"request": request.model_dump(mode="json")})
        if state is not None:
            question = json.dumps({"state": state.model_dump(mode="json")}) + "\n" + question
        await process.send(question)
        answer = await process.receive()
        process.done()
        return answer

    async def _process(self, study: str) -> tuple[JsonLinesProcess, asyncio.Lock]:
        if study not in self._studies:
            found = JsonLinesProcess("loomos.weaver.suggesting"), asyncio.Lock()
            self._studies[study] = found
            if len(self._studies) > MOST_STUDIES:
                _, (oldest, busy) = self._studies.popitem(last=False)
                async with busy:
                    await oldest.close()
        self._studies.move_to_end(study)
        return self._studies[study]

    @activity.defn
    async def read_earlier(self, request: WarmStartRequest) -> WarmStart:
        """Trials of earlier experiments that are points of this space.

        Raises:
            NotFound: there is no such experiment.
            InvalidInput: it is judged by other metrics.
        """
        found: list[Known] = []
        for experiment_id in request.experiments:
            found += await self._trials(experiment_id, request)
        return WarmStart(trials=found[-MOST_EARLIER:])

    async def _trials(self, experiment_id: str, request: WarmStartRequest) -> list[Known]:
        handle = self._client.get_workflow_handle(experiment_id)
        field = f"spec.warm_start: {experiment_id!r}"
        found: list[Known] = []
        try:
            status = await handle.query("status", result_type=ExperimentStatus)
            if status.spec.metrics != request.spec.metrics:
                raise InvalidInput(f"{field} is judged by other metrics; leave it out")
            since, is_over = 0, False
            while not is_over:
                page = await handle.query("trials", TrialsQuery(since=since), result_type=TrialPage)
                is_over = page.is_over or not page.trials
                since = page.next
                found += [
                    Known(
                        params=trial.params,
                        state=trial.state,
                        values=trial.values,
                        reports=trial.reports,
                    )
                    for trial in sorted(page.trials, key=lambda trial: trial.number)
                    if trial.state in (TrialState.COMPLETED, TrialState.PRUNED)
                    and contains(request.spec, trial.params)
                ]
                activity.heartbeat(since)
        except WorkflowQueryFailedError:
            raise InvalidInput(f"{field} is no experiment") from None
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                raise NotFound(f"{field} is not known; `loomos experiments list`") from None
            raise Unavailable(f"Temporal: {error}") from None
        return found


@contextlib.asynccontextmanager
async def _heartbeats() -> AsyncIterator[None]:
    """Heartbeat while the block runs: some samplers think for long."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
