"""Population based training: who goes on, who takes over from whom, with what changed.

Source: Jaderberg et al. 2017, arXiv:1711.09846; truncation selection and perturbation as in its
appendix. Rounds are synchronous, so that the outcome does not depend on who is fast.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from loomos.jobs.experiments import Params, TrialRecord, TrialState
from loomos.manifest import ExperimentSpec, Parameter
from loomos.weaver.results import costs
from loomos.weaver.space import allowed, applies

MOST_TRIES = 100


def offspring(
    spec: ExperimentSpec, number: int, previous: Sequence[TrialRecord]
) -> tuple[Params, int]:
    """What a trial of a later round tries, and whose state it goes on from.

    Args:
        spec: the experiment.
        number: the trial's; its member is `number % size`.
        previous: the round before, by member.
    """
    population = spec.population
    assert population is not None
    member = number % population.size
    ranked = sorted(previous, key=lambda trial: _rank(spec, trial))
    few = max(1, math.floor(population.size * population.quantile))
    mine = previous[member]
    if mine not in ranked[-few:] or mine in ranked[:few]:
        return mine.params, mine.number
    chance = random.Random(f"{spec.seed}/{number}")
    model = chance.choice(ranked[:few])
    for _ in range(MOST_TRIES):
        changed = _explore(spec, model.params, chance)
        if allowed(spec, changed):
            return changed, model.number
    return model.params, model.number


def _rank(spec: ExperimentSpec, trial: TrialRecord) -> tuple[bool, float, int]:
    if trial.state != TrialState.COMPLETED or not trial.is_feasible:
        return True, 0.0, trial.number
    return False, costs(spec, trial)[0], trial.number


def _explore(spec: ExperimentSpec, params: Params, chance: random.Random) -> Params:
    population = spec.population
    assert population is not None
    changed: Params = {}
    for name, parameter in spec.parameters.items():
        if not applies(parameter, changed):
            continue
        if name not in params or chance.uniform(0, 1) < population.resample:
            changed[name] = draw(parameter, chance)
        else:
            changed[name] = _perturb(parameter, params[name], population.factors, chance)
    return changed


def draw(parameter: Parameter, chance: random.Random) -> bool | int | float | str:
    """A value at random."""
    if parameter.values is not None:
        return chance.choice(parameter.values)
    assert parameter.min is not None and parameter.max is not None
    if parameter.is_log:
        value = math.exp(chance.uniform(math.log(parameter.min), math.log(parameter.max)))
    else:
        value = chance.uniform(parameter.min, parameter.max)
    return _within(parameter, value)


def _perturb(
    parameter: Parameter,
    value: bool | int | float | str,
    factors: list[float],
    chance: random.Random,
) -> bool | int | float | str:
    if parameter.values is not None:
        place = parameter.values.index(value) + chance.choice([-1, 1])
        return parameter.values[min(max(place, 0), len(parameter.values) - 1)]
    assert not isinstance(value, str)
    return _within(parameter, value * chance.choice(factors))


def _within(parameter: Parameter, value: float) -> int | float:
    """The nearest value that the parameter has."""
    assert parameter.min is not None and parameter.max is not None
    step = parameter.step or (1.0 if parameter.is_whole else None)
    if step is not None:
        value = parameter.min + round((value - parameter.min) / step) * step
        most = math.floor((parameter.max - parameter.min) / step + 1e-9) * step + parameter.min
    else:
        most = parameter.max
    value = min(max(value, parameter.min), most)
    return round(value) if parameter.is_whole else value
