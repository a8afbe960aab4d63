"""An experiment: points are chosen, trials run, results come back, until enough is known.

Trial n is chosen knowing the results of the trials up to n - lookahead, no more and no fewer. So
the same seed and the same results give the same trials, whoever is fast and whatever dies; the
sampler's state is no state of its own, it is made again from the results in this workflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from loomos.errors import InvalidInput, InvalidManifest, Unavailable
    from loomos.jobs.experiments import (
        CarriedSweep,
        ExperimentEvent,
        ExperimentInput,
        ExperimentResult,
        ExperimentState,
        ExperimentStatus,
        KnownTrials,
        Params,
        StopRequest,
        StudyState,
        SuggestRequest,
        TrialPage,
        TrialRequest,
        TrialResult,
        TrialsQuery,
        TrialState,
        WarmStartRequest,
    )
    from loomos.jobs.names import SUMMARY_MEMO
    from loomos.manifest import TrainingSpec
    from loomos.weaver.book import TrialBook
    from loomos.weaver.packing import pack_study, pack_sweep, unpack_sweep
    from loomos.weaver.population import offspring
    from loomos.weaver.pruning import rule_for
    from loomos.weaver.results import enough
    from workflows import calls, experiment_calls
    from workflows.causes import as_failure, root_cause
    from workflows.long_runs import is_long, record
    from workflows.state_log import StateLog
    from workflows.trial_jobs import run_as_job

MOST_ASKED = 64
"""Points asked for at once."""
MOST_RECORDED = 20
"""Trials of a Pareto front that go into the ledger."""
MOST_SHOWN = 100
"""Trials of a Pareto front that go into an answer or the result."""
MOST_FAILURES = 10
"""Trials in a row, by number, that all failed: then the experiment fails."""
ALL_FAILED = "all-trials-failed"
"""Patch since which an experiment whose trials all fail is failed."""
OUTAGE = "outage-is-no-result"
"""Patch since which a trial that could not reach the store is run again."""
OUTAGE_WAIT = timedelta(seconds=30)
"""Time after which a trial is run again that could not reach the store."""


@workflow.defn(name="ExperimentSweep")
class ExperimentSweep:
    """One experiment."""

    @workflow.init
    def __init__(self, run: ExperimentInput) -> None:
        carried = unpack_sweep(
            run.carried
            or CarriedSweep(trials=[], finished=[], started_at=workflow.info().start_time)
        )
        self._run, self._spec = run, run.spec
        self._book = TrialBook(run.spec, carried.trials, carried.finished, carried.front)
        self._inputs = carried.inputs
        self._earlier = list(carried.earlier)
        self._stop_reason = carried.stop_reason
        self._exhausted = carried.exhausted
        self._log = StateLog(
            ExperimentEvent,
            carried.timeline,
            ExperimentState.PREPARING,
            carried.started_at,
            self._rows,
        )
        self._told = self._book.ordered
        self._running: dict[int, asyncio.Task[None]] = {}
        self._choosing: asyncio.Task[None] | None = None
        self._fatal: Exception | None = None
        self._news = 0

    @workflow.run
    async def run(self, run: ExperimentInput) -> ExperimentResult:
        """Carry the experiment to its end."""
        try:
            if run.carried is None:
                await self._prepare()
            await self._sweep()
            return await self._conclude()
        except workflow.ContinueAsNewError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled_exception(error):
                await self._let_go()
                await self._end(ExperimentState.CANCELLED, "cancelled")
                raise
            assert isinstance(error, Exception)
            failure = as_failure(error)
            if failure is None:
                raise
            await self._let_go()
            await self._end(ExperimentState.FAILED, root_cause(failure))
            if failure is error:
                raise
            raise failure from error

    # --- phases ---

    async def _prepare(self) -> None:
        self._log.enter(ExperimentState.PREPARING, "pins inputs")
        await self._record("experiment_started", {"spec": self._spec.model_dump(mode="json")})
        if self._spec.objective.training is not None:
            first: Params = {name: p.first for name, p in self._spec.parameters.items()}
            self._inputs = await calls.resolve_inputs(self._spec.training_spec(first))
        if self._spec.warm_start:
            request = WarmStartRequest(experiments=self._spec.warm_start, spec=self._spec)
            self._earlier = (await experiment_calls.read_earlier(request)).trials
            self._log.note(f"knows {len(self._earlier)} trials of earlier experiments")
        if not self._is_over:
            self._log.enter(ExperimentState.RUNNING, "trials run")

    async def _sweep(self) -> None:
        """Choose and start trials as results allow it, until there is nothing to wait for."""
        while True:
            seen = self._news
            self._look_whether_enough()
            if not is_long():
                self._choose()
                self._start()
            elif not self._running and self._choosing is None:
                await self._continue_as_new()
            if self._fatal is not None:
                raise self._fatal
            if not self._running and self._choosing is None:
                return
            with contextlib.suppress(TimeoutError):  # the time budget: looked at above
                await workflow.wait_condition(
                    lambda seen=seen: self._news > seen,  # type: ignore[misc]
                    timeout=self._time_left(),
                    timeout_summary="time budget",
                )

    async def _conclude(self) -> ExperimentResult:
        self._refuse_all_failed()
        why = "the space has no more points" if self._exhausted else "every trial has ended"
        await self._end(ExperimentState.COMPLETED, self._stop_reason or why)
        return ExperimentResult(
            state=ExperimentState.COMPLETED,
            best=self._book.best()[:MOST_SHOWN],
            trials=len(self._book),
        )

    def _refuse_all_failed(self) -> None:
        """An experiment of which every trial failed has found nothing."""
        ended = [trial for trial in self._book.trials if trial.state != TrialState.CANCELLED]
        failed = [trial for trial in ended if trial.state == TrialState.FAILED]
        if failed and len(failed) == len(ended) and workflow.patched(ALL_FAILED):
            raise ApplicationError(
                f"every trial failed ({len(failed)}); the last: {failed[-1].error}",
                type="TrialsFailed",
                non_retryable=True,
            )

    async def _end(self, state: ExperimentState, message: str) -> None:
        """Let the ledger, lists and people know how it ended."""
        found = self._book.best()
        data = {
            "best": [
                {"params": t.params, "trial": t.number, "values": t.values}
                for t in found[:MOST_RECORDED]
            ],
            "message": message[:500],
            "state": state,
            "trials": len(self._book),
        }
        await self._record("experiment_ended", data)
        summary = {
            "best": found[0].values if len(found) == 1 else [],
            "front": len(found),
            "trials": len(self._book.finished),
        }
        workflow.upsert_memo({SUMMARY_MEMO: summary})
        self._log.enter(state, message)

    # --- choosing ---

    @property
    def _is_over(self) -> bool:
        return bool(self._stop_reason)

    def _choose(self) -> None:
        """Have the next points chosen, if they may be; trials start meanwhile."""
        if self._choosing is not None or self._is_over or self._exhausted:
            return
        count = self._book.choosable(len(self._running), MOST_ASKED)
        population = self._spec.population
        if population is not None and len(self._book) >= population.size:
            for _ in range(count):
                number = len(self._book)
                previous = self._book.round_before(number)
                self._book.add(*offspring(self._spec, number, previous))
        elif count > 0:
            self._choosing = asyncio.create_task(self._suggest(len(self._book), count))

    async def _suggest(self, first: int, count: int) -> None:
        """Ask the study; it is told what is new, and asks for the rest where it was lost."""
        ordered = self._book.ordered
        try:
            found = await experiment_calls.suggest(
                SuggestRequest(
                    experiment_id=self._run.experiment_id,
                    study=workflow.info().run_id,
                    first=first,
                    count=count,
                    known_from=self._told,
                    known=self._book.known(self._told, ordered),
                )
            )
        except Exception as error:  # raised by the sweep itself, so that the workflow fails by it
            self._fatal = error
            return
        finally:
            self._choosing = None
            self._news += 1
        self._told = ordered
        self._exhausted = len(found.params) < count
        if not self._is_over:
            for params in found.params:
                self._book.add(params)

    # --- running ---

    def _start(self) -> None:
        for trial in self._book.waiting():
            if self._is_over or len(self._running) >= self._spec.parallelism:
                return
            # Noted here, and not when the task begins, so that it is not started twice.
            self._book.change(trial.number, state=TrialState.RUNNING, started_at=workflow.now())
            task = asyncio.create_task(self._carry(trial.number))
            self._running[trial.number] = task

    async def _carry(self, number: int) -> None:
        """One trial from its start to its result, tried again where it fails."""
        try:
            request = self._request(number)
            result = await self._try(request)
            while result.state == TrialState.FAILED and request.retry < self._spec.retries:
                request = request.model_copy(update={"retry": request.retry + 1})
                self._book.change(number, retries=request.retry)
                result = await self._try(request)
        except (InvalidInput, InvalidManifest) as error:
            result = TrialResult(state=TrialState.FAILED, error=str(error)[:1000])
        except asyncio.CancelledError:
            self._book.change(number, state=TrialState.CANCELLED)
            raise
        except Exception as error:  # a mistake of ours
            self._fatal = error
            return
        finally:
            del self._running[number]
            self._news += 1
        self._book.settle(number, result, workflow.now())
        self._log.show_now_and_then()

    async def _try(self, request: TrialRequest) -> TrialResult:
        """One attempt at a trial; that the store or Temporal is away is no result of it."""
        while (result := await self._try_once(request)) is None:
            waits = f"trial {request.number} waits for the store"
            if self._log.message != waits:  # an outage may be long, and the timeline is kept
                self._log.note(waits)
            await workflow.sleep(OUTAGE_WAIT)
        return result

    async def _try_once(self, request: TrialRequest) -> TrialResult | None:
        """None if the machine was to blame."""
        try:
            if self._spec.objective.own_page:
                return await run_as_job(self._run, request)
            priority = Priority(priority_key=self._spec.priority, fairness_key=self._run.project)
            return await experiment_calls.run_trial(request, priority)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from None
            cause = error.cause
            is_outage = isinstance(cause, ApplicationError) and cause.type == Unavailable.__name__
            if is_outage and workflow.patched(OUTAGE):
                return None
            return TrialResult(state=TrialState.FAILED, error=root_cause(error)[:1000])

    def _request(self, number: int) -> TrialRequest:
        spec, trial = self._spec, self._book[number]
        known = self._book.trials[: max(0, number - spec.known_before + 1)]
        metrics = [metric.name for metric in spec.metrics]
        training = None
        if spec.objective.training is not None:
            training = spec.training_spec(trial.params)
            if spec.population is not None:
                training = _lengthened(training, number // spec.population.size + 1)
        return TrialRequest(
            experiment_id=self._run.experiment_id,
            number=number,
            params=trial.params,
            seed=spec.seed,
            metrics=metrics,
            limits=[limit.metric for limit in spec.limits if limit.metric not in metrics],
            function=spec.objective.function,
            arguments_json=json.dumps(spec.objective.arguments),
            training=training,
            inputs=self._inputs,
            pruning=rule_for(spec, number, known),
            most_reports=spec.most_reports,
            parent=trial.parent,
            timeout=spec.trial_timeout,
        )

    async def _let_go(self) -> None:
        """Cancel what runs, and wait for it."""
        choosing = [self._choosing] if self._choosing else []
        tasks = [*self._running.values(), *choosing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in self._running:  # those whose task had not begun
            self._book.change(number, state=TrialState.CANCELLED)
        self._running.clear()

    # --- when to stop ---

    def _look_whether_enough(self) -> None:
        if self._is_over:
            return
        reason = enough(self._spec, self._book.trials)
        left = self._time_left()
        if left is not None and left <= timedelta(0):
            reason = reason or "the budget's max_duration is used"
        if reason:
            self._stop(reason)
        ordered = self._book.ordered
        failed = self._book.trials[max(0, ordered - MOST_FAILURES) : ordered]
        if len(failed) == MOST_FAILURES and all(t.state == TrialState.FAILED for t in failed):
            self._fatal = ApplicationError(
                f"{MOST_FAILURES} trials in a row failed; the last: {failed[-1].error}",
                type="TrialsFailed",
                non_retryable=True,
            )

    def _stop(self, reason: str) -> None:
        """Start no more; what was chosen and not begun is let go."""
        self._stop_reason = reason
        self._book.let_go()
        self._news += 1
        self._log.enter(ExperimentState.STOPPING, reason)

    def _time_left(self) -> timedelta | None:
        longest = self._spec.budget.max_duration
        if longest is None or self._is_over:
            return None
        return max(timedelta(0), self._log.started_at + longest - workflow.now())

    # --- bookkeeping ---

    async def _continue_as_new(self) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        carried = CarriedSweep(
            trials=self._book.trials,
            finished=self._book.finished,
            earlier=self._earlier,
            inputs=self._inputs,
            started_at=self._log.started_at,
            timeline=self._log.timeline,
            stop_reason=self._stop_reason,
            exhausted=self._exhausted,
            front=self._book.front,
        )
        update = {"carried": pack_sweep(carried, self._spec)}
        workflow.continue_as_new(self._run.model_copy(update=update))

    async def _record(self, event_type: str, data: dict[str, object]) -> None:
        person = self._run.owner if event_type == "experiment_started" else None
        await record("experiment", self._run.experiment_id, event_type, data, person)

    def _rows(self) -> list[tuple[str, str]]:
        counts = ", ".join(f"{count} {state}" for state, count in self._book.counts().items())
        rows = [("trials", counts or "none yet")]
        if len(self._spec.metrics) == 1:
            values = [f"{trial.values[0]:.6g}" for trial in self._book.best()]
            rows.append(("best", ", ".join(values) or "none yet"))
        return rows

    # --- messages ---

    @workflow.update
    def stop(self, request: StopRequest) -> ExperimentStatus:
        """Start no more trials; those that run end."""
        self._stop(request.reason or f"stopped by {request.person}")
        return self.status()

    @stop.validator
    def _may_stop(self, request: StopRequest) -> None:
        if self._log.state.is_final or self._is_over:
            raise ApplicationError(
                f"the experiment is {self._log.state}", type="Conflict", non_retryable=True
            )

    @workflow.query
    def status(self) -> ExperimentStatus:
        """Where it is."""
        return ExperimentStatus(
            experiment_id=self._run.experiment_id,
            name=self._run.name,
            owner=self._run.owner,
            project=self._run.project,
            state=self._log.state,
            message=self._log.message,
            spec=self._spec,
            counts=self._book.counts(),
            best=self._book.best()[:MOST_SHOWN],
            cost=round(self._book.cost(), 6),
            started_at=self._log.started_at,
            finished_at=self._log.finished_at,
            timeline=self._log.timeline,
        )

    @workflow.query
    def study(self) -> StudyState:
        """All that the study of this experiment is made of."""
        known = self._book.known(0, self._book.ordered)
        return pack_study(self._spec, KnownTrials(earlier=self._earlier, known=known))

    @workflow.query
    def trials(self, query: TrialsQuery) -> TrialPage:
        """Trials that have finished, in that order."""
        return self._book.page(query, is_over=self._log.state.is_final)


def _lengthened(training: TrainingSpec, rounds: int) -> TrainingSpec:
    """The training of a member that goes on to so many rounds."""
    assert training.model is not None
    tuning = training.model.fine_tuning_config
    assert tuning.max_steps is not None
    longer = tuning.model_copy(update={"max_steps": tuning.max_steps * rounds})
    model = training.model.model_copy(update={"fine_tuning_config": longer})
    return training.model_copy(update={"model": model})
