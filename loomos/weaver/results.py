"""What came of trials: which are feasible, which is best, whether enough is known."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import dropwhile, filterfalse
from operator import itemgetter, le

from loomos.jobs.experiments import TrialRecord, TrialRequest, TrialResult, TrialState
from loomos.jobs.training import TrainOutcome
from loomos.manifest import ExperimentSpec


def violations(spec: ExperimentSpec, trial: TrialRecord) -> dict[str, float]:
    """By limit, how far a trial breaks it; at most 0 where it is kept.

    A metric that the trial did not give breaks its limit by 1.
    """
    given = {
        **trial.metrics,
        **dict(zip([m.name for m in spec.metrics], trial.values, strict=False)),
    }
    found: dict[str, float] = {}
    for index, limit in enumerate(spec.limits):
        value = given.get(limit.metric)
        if value is None:
            found[f"{index}:{limit.metric}"] = 1.0
            continue
        over = -1.0e308 if limit.max is None else value - limit.max
        under = -1.0e308 if limit.min is None else limit.min - value
        found[f"{index}:{limit.metric}"] = max(over, under)
    return found


def best(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best trial, or the Pareto front by number; empty if none is complete and feasible."""
    by_number = {trial.number: trial for trial in trials}
    front = Front(spec)
    for trial in trials:
        front.take(trial)
    return [by_number[number] for number in front.best]


class Front:
    """The trials that no other one dominates, kept from result to result.

    Its members lie in the order of their costs, the first metric first. So one is dominated only by
    those before it; with two metrics, where the second cost falls along the front, by its
    neighbour if by any. What a look at it costs is no more than a copy of numbers.

    Args:
        spec: the metrics and their directions.
        members: trials that are known to be the front already.
    """

    def __init__(self, spec: ExperimentSpec, members: Iterable[TrialRecord] = ()) -> None:
        self._spec = spec
        self._members = sorted((costs(spec, trial), trial.number) for trial in members)

    @property
    def numbers(self) -> list[int]:
        """Of all members, ascending."""
        return sorted(number for _, number in self._members)

    @property
    def best(self) -> list[int]:
        """Numbers of the front; of one metric, of the first of the best trials alone."""
        return self.numbers[:1] if len(self._spec.metrics) == 1 else self.numbers

    def take(self, trial: TrialRecord) -> None:
        """A trial has ended; it is on the front from now on, perhaps in place of others."""
        if trial.state != TrialState.COMPLETED or not trial.is_feasible:
            return
        ours = costs(self._spec, trial)
        members, is_line = self._members, len(ours) <= 2
        place = bisect_left(members, ours, key=itemgetter(0))
        before = members[max(0, place - 1) : place] if is_line else members[:place]
        if any(dominates(theirs, ours) for theirs, _ in before):
            return
        end = place
        while end < len(members) and members[end][0] == ours:  # as good in everything
            end += 1
        keep = dropwhile if is_line else filterfalse
        left = keep(lambda each: dominates(ours, each[0]), members[end:])
        self._members = [*members[:end], (ours, trial.number), *left]


def dominates(a: list[float], b: list[float]) -> bool:
    """Whether costs that are not all the same are nowhere above others."""
    return all(map(le, a, b))


def costs(spec: ExperimentSpec, trial: TrialRecord) -> list[float]:
    """A trial's values with every direction turned to smaller-is-better."""
    return [
        value if metric.direction == "minimize" else -value
        for metric, value in zip(spec.metrics, trial.values, strict=True)
    ]


def enough(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> str:
    """Why the search may end; empty if it may not."""
    most = spec.budget.max_cost
    if most is not None and sum(trial.cost for trial in trials) >= most:
        return _known_enough(spec, trials) or "the budget's max_cost is used"
    return _known_enough(spec, trials)


def _known_enough(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> str:
    """Likewise by `stop`, looking at trials in their order up to the first unfinished one.

    Looking in that order, the answer does not depend on who was fast.
    """
    stop = spec.stop
    if stop.patience is None and stop.target is None:
        return ""
    least: float | None = None
    stale = 0
    for trial in trials:
        if not trial.state.is_final:
            break
        if trial.state == TrialState.COMPLETED and trial.is_feasible:
            cost = costs(spec, trial)[0]
            if stop.target is not None:
                target = stop.target if spec.metrics[0].direction == "minimize" else -stop.target
                if cost <= target:
                    return f"trial {trial.number} reached the target"
            if least is None or cost < least - stop.min_delta:
                least, stale = cost, 0
                continue
        if least is not None:
            stale += 1
            if stop.patience is not None and stale >= stop.patience:
                return f"no better trial in {stale}"
    return ""


def training_result(request: TrialRequest, outcome: TrainOutcome, seconds: float) -> TrialResult:
    """A trial's result from how its training ended."""
    metrics = {
        "loss": outcome.loss,
        "steps": float(outcome.step),
        "training_seconds": seconds,
        "validation_loss": outcome.validation_loss,
    }
    given = {name: value for name, value in metrics.items() if value is not None}
    is_pruned = outcome.reason == "pruned"
    return TrialResult(
        state=TrialState.PRUNED if is_pruned else TrialState.COMPLETED,
        values=[] if is_pruned else [given[name] for name in request.metrics],
        metrics={name: v for name, v in given.items() if name not in request.metrics},
        reports=outcome.evaluations,
        rungs=outcome.rungs,
    )
