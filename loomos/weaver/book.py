"""The trials of an experiment and what is known of them. Kept by the workflow; pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from loomos.jobs.experiments import (
    Known,
    Params,
    TrialPage,
    TrialRecord,
    TrialResult,
    TrialsQuery,
    TrialState,
)
from loomos.manifest import ExperimentSpec
from loomos.weaver.results import Front, violations


class TrialBook:
    """Every trial by number, and the order in which they finished."""

    def __init__(
        self,
        spec: ExperimentSpec,
        trials: list[TrialRecord],
        finished: list[int],
        front: list[int] | None = None,
    ) -> None:
        self._spec = spec
        self.trials = list(trials)
        """By number."""
        self.finished = list(finished)
        """Numbers, in the order in which results came."""
        self._ordered = 0
        self._front = Front(spec, [self.trials[number] for number in front or ()])
        for trial in self.trials if front is None else ():
            self._front.take(trial)

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, number: int) -> TrialRecord:
        return self.trials[number]

    @property
    def ordered(self) -> int:
        """How many trials are finished with none unfinished before them."""
        while self._ordered < len(self.trials) and self.trials[self._ordered].state.is_final:
            self._ordered += 1
        return self._ordered

    def choosable(self, begun: int, at_once: int) -> int:
        """How many of the next trials may be chosen with what is known.

        Args:
            begun: trials that run.
            at_once: most to choose at once; while half as many wait, none is chosen.
        """
        spec, first = self._spec, len(self.trials)
        if spec.population is not None:
            size = spec.population.size
            if first < size:
                return min(size, spec.most_trials) - first
            knows_round = self.ordered >= first - first % size
            return min(size, spec.most_trials - first) if knows_round else 0
        if first - len(self.finished) - begun > at_once // 2:
            return 0
        return min(spec.trials, self.ordered + spec.known_before, first + at_once) - first

    def add(self, params: Params, parent: int | None = None) -> None:
        """A trial was chosen."""
        self.trials.append(TrialRecord(number=len(self.trials), params=params, parent=parent))

    def change(self, number: int, **changes: object) -> None:
        """Something about a trial is different now."""
        self.trials[number] = self.trials[number].model_copy(update=changes)

    def settle(self, number: int, result: TrialResult, now: datetime) -> None:
        """A trial has ended."""
        facts = result.model_dump(exclude={"reports"})
        self.change(number, **facts, reports=result.reports, finished_at=now)
        if self._spec.limits and result.state == TrialState.COMPLETED:
            broken = violations(self._spec, self.trials[number])
            self.change(number, is_feasible=max(broken.values()) <= 0)
        self._front.take(self.trials[number])
        self.finished.append(number)

    def waiting(self) -> Iterator[TrialRecord]:
        """Trials that were chosen and not begun, by number."""
        return (t for t in self.trials[self.ordered :] if t.state == TrialState.WAITING)

    def let_go(self) -> None:
        """Cancel what waits."""
        for trial in list(self.waiting()):
            self.change(trial.number, state=TrialState.CANCELLED)

    def round_before(self, number: int) -> list[TrialRecord]:
        """The members of a population in the round before a trial's."""
        assert self._spec.population is not None
        size = self._spec.population.size
        begin = number - number % size - size
        return self.trials[begin : begin + size]

    def known(self, start: int, end: int) -> list[Known]:
        """Results of trials, as a sampler is told them."""
        return [
            Known(
                params=trial.params,
                state=trial.state,
                values=trial.values,
                reports=trial.reports,
                violations=violations(self._spec, trial) if self._spec.limits else {},
            )
            for trial in self.trials[start:end]
        ]

    def best(self) -> list[TrialRecord]:
        """The best trial, or the Pareto front."""
        return [self.trials[number] for number in self._front.best]

    @property
    def front(self) -> list[int]:
        """Numbers of the trials that no other one dominates."""
        return self._front.numbers

    def counts(self) -> dict[str, int]:
        """Trials by state."""
        states = [trial.state for trial in self.trials]
        return {state.value: states.count(state) for state in TrialState if state in states}

    def cost(self) -> float:
        """Of all trials."""
        return sum(trial.cost for trial in self.trials)

    def page(self, query: TrialsQuery, *, is_over: bool) -> TrialPage:
        """Finished trials, in the order in which they finished."""
        end = min(query.since + query.limit, len(self.finished))
        return TrialPage(
            trials=[self.trials[number] for number in self.finished[query.since : end]],
            next=max(query.since, end),
            is_over=is_over and end >= len(self.finished),
        )
