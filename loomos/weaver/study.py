"""A sweep's mind: an Optuna study that is asked and told in one canonical order.

Trial n is asked for when the results of the trials up to n - lookahead have been told, in order of
their numbers, and no others. So what is suggested is a function of the experiment and those
results alone, and a study that was lost is made again by asking and telling the same things in the
same order. With one trial at a time it is Optuna's own sequential run, number for number.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState

from loomos.errors import InvalidInput
from loomos.jobs.experiments import (
    Known,
    Params,
    StudyState,
    Suggested,
    SuggestRequest,
    TrialState,
)
from loomos.manifest import Parameter, Sampler
from loomos.weaver.pruning import study_name
from loomos.weaver.space import allowed, applies, grid

log = logging.getLogger(__name__)

MOST_REJECTIONS = 1000
"""Points in a row that break a constraint, after which the space counts as empty."""

_STATES = {
    TrialState.COMPLETED: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.CANCELLED: OptunaState.FAIL,
}


class Study:
    """Suggests the points of one experiment. Holds what it was asked and told."""

    def __init__(self, state: StudyState) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        spec = state.spec
        self._spec = spec
        self._told = 0
        self._results = list(state.known)
        self._asked: list[optuna.Trial | None] = []
        self._suggested: list[Params] = []
        self._grid = grid(spec) if spec.sampler.name == "grid" else None
        self._distributions = {name: distribution(p) for name, p in spec.parameters.items()}
        self._study = optuna.create_study(
            study_name=study_name(spec.seed),
            directions=[metric.direction for metric in spec.metrics],
            sampler=sampler(spec.sampler, spec.seed),
            pruner=optuna.pruners.NopPruner(),
        )
        for known in state.earlier:
            self._study.add_trial(self._frozen(known))

    @property
    def results(self) -> int:
        """How many results it has heard of."""
        return len(self._results)

    def suggest(self, request: SuggestRequest) -> Suggested:
        """Points for the trials asked for; asked again, the same ones.

        Args:
            request: with no gap between the results heard of and those in it.

        Raises:
            InvalidInput: constraints leave nothing of the space.
        """
        assert request.known_from <= self.results
        self._results += request.known[self.results - request.known_from :]
        while len(self._suggested) < request.first + request.count:
            if not self._suggest_next():
                break
        return Suggested(params=self._suggested[request.first : request.first + request.count])

    def _suggest_next(self) -> bool:
        number = len(self._suggested)
        if self._grid is not None:
            if number == len(self._grid):
                return False
            self._suggested.append(self._grid[number])
            return True
        for told in range(self._told, number - self._spec.known_before + 1):
            self._tell(self._asked[told], self._results[told])
            self._told += 1
        for _ in range(MOST_REJECTIONS):
            trial = self._study.ask()
            params = self._draw(trial)
            if allowed(self._spec, params):
                self._asked.append(trial)
                self._suggested.append(params)
                return True
            self._study.tell(trial, state=OptunaState.PRUNED)
        raise InvalidInput(
            f"spec.constraints: {MOST_REJECTIONS} suggestions in a row broke them; widen the space "
            "or loosen the constraints"
        )

    def _draw(self, trial: optuna.Trial) -> Params:
        params: Params = {}
        for name, parameter in self._spec.parameters.items():
            if applies(parameter, params):
                params[name] = _value(trial, name, self._distributions[name])
        return params

    def _tell(self, trial: optuna.Trial | None, known: Known) -> None:
        assert trial is not None
        for step, value in known.reports:
            trial.report(value, step)
        for name, over in known.violations.items():
            trial.set_constraint(name, over)
        state = _STATES[known.state]
        values = known.values if state == OptunaState.COMPLETE else None
        self._study.tell(trial, values, state)

    def _frozen(self, known: Known) -> optuna.trial.FrozenTrial:
        state = _STATES[known.state]
        return optuna.trial.create_trial(
            state=state,
            values=known.values if state == OptunaState.COMPLETE else None,
            params=known.params,
            distributions={name: self._distributions[name] for name in known.params},
            intermediate_values=dict(known.reports),
        )


def sampler(chosen: Sampler, seed: int) -> BaseSampler:
    """Optuna's sampler of that name; `random` for a grid, which needs none."""
    startup: dict[str, Any] = {}
    if chosen.startup_trials is not None:
        startup = {"n_startup_trials": chosen.startup_trials}
    size = chosen.population_size
    match chosen.name:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, **startup)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, **startup)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed, warn_independent_sampling=False, popsize=size, **startup
            )
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=size or 50)
        case "qmc":
            return optuna.samplers.QMCSampler(
                seed=seed, scramble=True, warn_independent_sampling=False
            )
        case "random" | "grid":
            return optuna.samplers.RandomSampler(seed=seed)


def distribution(parameter: Parameter) -> BaseDistribution:
    """A parameter as Optuna has it."""
    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    assert parameter.min is not None and parameter.max is not None
    if parameter.is_whole:
        return IntDistribution(
            int(parameter.min),
            int(parameter.max),
            log=parameter.is_log,
            step=int(parameter.step or 1),
        )
    return FloatDistribution(
        parameter.min, parameter.max, log=parameter.is_log, step=parameter.step
    )


def _value(trial: optuna.Trial, name: str, chosen: BaseDistribution) -> bool | int | float | str:
    match chosen:
        case CategoricalDistribution():
            value = trial.suggest_categorical(name, chosen.choices)
            assert value is not None
            return value
        case IntDistribution():
            return trial.suggest_int(
                name, chosen.low, chosen.high, step=chosen.step, log=chosen.log
            )
        case FloatDistribution():
            return trial.suggest_float(
                name, chosen.low, chosen.high, step=chosen.step, log=chosen.log
            )
        case _:
            raise AssertionError(chosen)
