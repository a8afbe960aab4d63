"""Our searches against Optuna's own: same sampler, seeds and function.

One at a time the regret traces must be the same number for number. Eight at a time, Optuna's
threads choose by whatever is finished just then, ours by the results up to n - 8; held against
each other is the regret after all trials, over seeds. Goal: no worse.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from scipy.stats import wilcoxon

from loomos.jobs.experiments import Known, Params, StudyState, SuggestRequest, TrialState
from loomos.manifest import ExperimentSpec
from loomos.weaver.functions import (
    BRANIN_MINIMUM,
    HARTMANN6_MINIMUM,
    branin_at,
    hartmann6_at,
)
from loomos.weaver.study import Study, sampler

NEEDS_STACK = False
SAMPLERS = ("tpe", "gp", "cmaes", "random")
SEQUENTIAL_TRIALS = 60
SEEDS = 20
PARALLEL_TRIALS = 120
PARALLELISM = 8
TRIAL_S = 0.01
"""How long a trial takes, so that Optuna's threads really overlap."""

FUNCTIONS: dict[str, tuple[dict[str, Any], Callable[[Params], float], float]] = {
    "branin": (
        {
            "x": {"type": "uniform", "min": -5, "max": 10},
            "y": {"type": "uniform", "min": 0, "max": 15},
        },
        lambda p: branin_at(float(p["x"]), float(p["y"])),
        BRANIN_MINIMUM,
    ),
    "hartmann6": (
        {f"x{i}": {"type": "uniform", "min": 0, "max": 1} for i in range(6)},
        lambda p: hartmann6_at([float(p[f"x{i}"]) for i in range(6)]),
        HARTMANN6_MINIMUM,
    ),
}


def ours(function: str, name: str, seed: int, trials: int, parallelism: int) -> list[float]:
    """Values in order of trials."""
    space, value, _ = FUNCTIONS[function]
    spec = ExperimentSpec.model_validate(
        {
            "objective": {"function": "a:b"},
            "parameters": space,
            "sampler": name,
            "seed": seed,
            "parallelism": parallelism,
        }
    )
    study, known = Study(StudyState(spec=spec)), list[Known]()
    for first in range(trials):
        told = max(0, first - parallelism + 1)
        request = SuggestRequest(
            experiment_id="e",
            study="s",
            first=first,
            count=1,
            known_from=0,
            known=known[:told],
        )
        [params] = study.suggest(request).params
        known.append(Known(params=params, state=TrialState.COMPLETED, values=[value(params)]))
    return [k.values[0] for k in known]


def theirs(function: str, name: str, seed: int, trials: int, parallelism: int) -> list[float]:
    """Likewise, by `study.optimize`."""
    space, value, _ = FUNCTIONS[function]

    def objective(trial: optuna.Trial) -> float:
        params: Params = {
            key: trial.suggest_float(key, item["min"], item["max"]) for key, item in space.items()
        }
        if parallelism > 1:
            time.sleep(TRIAL_S)
        return value(params)

    chosen = ExperimentSpec.model_validate(
        {"objective": {"function": "a:b"}, "parameters": space, "sampler": name}
    ).sampler
    study = optuna.create_study(sampler=sampler(chosen, seed))
    study.optimize(objective, n_trials=trials, n_jobs=parallelism)
    return [trial.values[0] for trial in study.trials]


async def measure(stack: None) -> dict[str, Any]:
    """Traces, then regrets."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    same = {
        f"{function}/{name}": all(
            ours(function, name, seed, SEQUENTIAL_TRIALS, 1)
            == theirs(function, name, seed, SEQUENTIAL_TRIALS, 1)
            for seed in range(3)
        )
        for function in FUNCTIONS
        for name in SAMPLERS
    }
    result: dict[str, Any] = {"same_traces_sequential": sum(same.values()), "of": len(same)}
    ratios = []
    for function, (_, _, least) in FUNCTIONS.items():
        regrets = {
            kind.__name__: [
                math.log10(
                    max(min(kind(function, "tpe", s, PARALLEL_TRIALS, PARALLELISM)) - least, 1e-12)
                )
                for s in range(SEEDS)
            ]
            for kind in (ours, theirs)
        }
        medians = {kind: 10 ** statistics.median(values) for kind, values in regrets.items()}
        worse = wilcoxon(regrets["ours"], regrets["theirs"], alternative="greater").pvalue
        ratios.append(medians["ours"] / medians["theirs"])
        result[function] = {
            "median_regret": {kind: float(f"{value:.3g}") for kind, value in medians.items()},
            "p_that_ours_is_worse": round(float(worse), 3),
        }
    result["ratio"] = round(math.prod(ratios) ** (1 / len(ratios)), 2)
    return result
