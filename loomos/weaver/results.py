"""What came of trials: which are feasible, which is best, whether enough is known."""

from __future__ import annotations

from collections.abc import Sequence

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
    whole = [t for t in trials if t.state == TrialState.COMPLETED and t.is_feasible]
    if not whole:
        return []
    if len(spec.metrics) == 1:
        return [min(whole, key=lambda t: (costs(spec, t)[0], t.number))]
    return [t for t in whole if not any(_dominates(spec, other, t) for other in whole)]


def costs(spec: ExperimentSpec, trial: TrialRecord) -> list[float]:
    """A trial's values with every direction turned to smaller-is-better."""
    return [
        value if metric.direction == "minimize" else -value
        for metric, value in zip(spec.metrics, trial.values, strict=True)
    ]


def _dominates(spec: ExperimentSpec, a: TrialRecord, b: TrialRecord) -> bool:
    ours, theirs = costs(spec, a), costs(spec, b)
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))


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
