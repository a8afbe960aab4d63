"""Suggestions: Optuna's own when sequential, a function of known results when not."""

from __future__ import annotations

import random
import warnings

import optuna
import pytest

from loomos.errors import InvalidInput
from loomos.jobs.experiments import Known, Params, StudyState, SuggestRequest, TrialState
from loomos.manifest import ExperimentSpec
from loomos.weaver.functions import (
    BRANIN_MINIMUM,
    HARTMANN6_MINIMUM,
    branin_at,
    hartmann6_at,
)
from loomos.weaver.study import Study, sampler

BRANIN = {
    "x": {"type": "uniform", "min": -5, "max": 10},
    "y": {"type": "uniform", "min": 0, "max": 15},
}
MIXED = {
    "rate": {"type": "log_uniform", "min": 1e-5, "max": 1.0},
    "layers": {"type": "int_uniform", "min": 1, "max": 8},
    "width": {"type": "int_log_uniform", "min": 8, "max": 512},
    "kind": {"type": "choice", "values": ["a", "b", True, 3]},
    "extra": {"type": "uniform", "min": 0, "max": 1, "step": 0.25, "when": {"kind": ["a", 3]}},
}


def spec(**changes):
    return ExperimentSpec.model_validate(
        {"objective": {"function": "a:b"}, "parameters": BRANIN, "seed": 7, **changes}
    )


def result(params: Params) -> Known:
    value = branin_at(params["x"], params["y"])
    return Known(params=params, state=TrialState.COMPLETED, values=[value])


def mixed_value(params: Params) -> float:
    return (
        params["rate"] + params["layers"] / 8 + params.get("extra", 0.5) * len(str(params["kind"]))
    )


def fresh(wanted: ExperimentSpec, known=(), earlier=()) -> Study:
    return Study(StudyState(spec=wanted, earlier=list(earlier), known=list(known)))


def asked(first: int, count: int = 1, told: int = 0, known=()) -> SuggestRequest:
    return SuggestRequest(
        experiment_id="e", study="s", first=first, count=count, known_from=told, known=list(known)
    )


def sequential(wanted: ExperimentSpec, value, trials: int, forget_at: int = -1) -> list[Known]:
    """One trial at a time; at `forget_at` the study dies and is made again."""
    study, known = fresh(wanted), list[Known]()
    for number in range(trials):
        if number == forget_at:
            study = fresh(wanted, known)
        told = max(0, number - 1)
        [params] = study.suggest(asked(number, told=told, known=known[told:])).params
        known.append(Known(params=params, state=TrialState.COMPLETED, values=[value(params)]))
    return known


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsga2", "qmc", "random"])
def test_one_at_a_time_is_optunas_own_run(name):
    """Also if the study is lost on the way and made again from the results."""
    trials = 25
    wanted = spec(sampler=name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = optuna.create_study(sampler=sampler(wanted.sampler, 7))
        theirs.optimize(
            lambda t: branin_at(t.suggest_float("x", -5, 10), t.suggest_float("y", 0, 15)),
            n_trials=trials,
        )
        ours = sequential(wanted, lambda p: branin_at(p["x"], p["y"]), trials, forget_at=17)
    assert [k.params for k in ours] == [t.params for t in theirs.trials]
    assert [k.values[0] for k in ours] == [t.value for t in theirs.trials]


def test_conditional_and_mixed_spaces_are_asked_in_their_order():
    wanted = spec(parameters=MIXED)

    def objective(trial):
        params = {
            "rate": trial.suggest_float("rate", 1e-5, 1.0, log=True),
            "layers": trial.suggest_int("layers", 1, 8),
            "width": trial.suggest_int("width", 8, 512, log=True),
            "kind": trial.suggest_categorical("kind", ["a", "b", True, 3]),
        }
        if params["kind"] in ("a", 3) and params["kind"] is not True:
            params["extra"] = trial.suggest_float("extra", 0, 1, step=0.25)
        return mixed_value(params)

    theirs = optuna.create_study(sampler=sampler(wanted.sampler, 7))
    theirs.optimize(objective, n_trials=40)
    ours = sequential(wanted, mixed_value, 40, forget_at=30)
    assert [k.params for k in ours] == [t.params for t in theirs.trials]
    assert {("extra" in k.params) for k in ours} == {True, False}


@pytest.mark.parametrize("seed", range(5))
def test_who_is_fast_changes_nothing(seed):
    """Results that come in any order and in any batches give the same suggestions."""
    wanted = spec(parallelism=4)

    def run(chance: random.Random) -> list[Params]:
        study, params, done = fresh(wanted), list[Params](), dict[int, Known]()
        while len(params) < 40:
            ordered = next(i for i in range(41) if i not in done)
            known = [done[i] for i in range(ordered)]
            count = min(40, ordered + wanted.known_before) - len(params)
            if count > 0 and chance.choice([True, False]):
                if chance.randint(0, 9) == 0:  # it dies
                    study = fresh(wanted, known)
                told = chance.randint(0, study.results)
                count = chance.randint(1, count)
                params += study.suggest(asked(len(params), count, told, known[told:])).params
            running = [i for i in range(len(params)) if i not in done]
            if running:
                finished = chance.choice(running)
                done[finished] = result(params[finished])
        return params

    assert run(random.Random(seed)) == run(random.Random(99))


def test_asked_again_it_answers_the_same():
    study = fresh(spec())
    assert study.suggest(asked(0)) == study.suggest(asked(0))


def test_points_that_break_a_constraint_are_not_suggested():
    wanted = spec(constraints=["x + y <= 3", "x > -2 or y < 1"], sampler="random")
    found = fresh(wanted).suggest(asked(0, 64)).params
    assert len(found) == 64
    assert all(p["x"] + p["y"] <= 3 and (p["x"] > -2 or p["y"] < 1) for p in found)


def test_an_empty_space_is_said_to_be_empty():
    wanted = spec(constraints=["x > 20"], sampler="random")
    with pytest.raises(InvalidInput, match=r"spec\.constraints: 1000 suggestions in a row"):
        fresh(wanted).suggest(asked(0))


def test_a_grid_is_walked_once():
    wanted = spec(
        sampler="grid",
        parameters={
            "a": {"type": "int_uniform", "min": 1, "max": 5, "step": 2},
            "b": {"type": "choice", "values": ["x", "y"]},
            "c": {"type": "choice", "values": [0.5, 1.0], "when": {"b": "y"}},
        },
        constraints=["a < 5 or b == 'x'"],
    )
    assert fresh(wanted).suggest(asked(0, 100)).params == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y", "c": 0.5},
        {"a": 1, "b": "y", "c": 1.0},
        {"a": 3, "b": "x"},
        {"a": 3, "b": "y", "c": 0.5},
        {"a": 3, "b": "y", "c": 1.0},
        {"a": 5, "b": "x"},
    ]


def test_the_first_round_of_a_population_is_chosen_at_once():
    wanted = spec(population={"size": 6, "generations": 2})
    assert len(fresh(wanted).suggest(asked(0, 6)).params) == 6


def test_earlier_trials_are_known_from_the_start():
    """With enough of them TPE does not begin with random points."""
    earlier = sequential(spec(seed=1), lambda p: branin_at(p["x"], p["y"]), 40)
    wanted = spec(seed=2)
    cold, warm = fresh(wanted), fresh(wanted, earlier=earlier)
    theirs = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=2))
    for known in earlier:
        theirs.add_trial(
            optuna.trial.create_trial(
                params=known.params,
                distributions={
                    "x": optuna.distributions.FloatDistribution(-5, 10),
                    "y": optuna.distributions.FloatDistribution(0, 15),
                },
                value=known.values[0],
            )
        )
    trial = theirs.ask()
    expected = {"x": trial.suggest_float("x", -5, 10), "y": trial.suggest_float("y", 0, 15)}
    assert warm.suggest(asked(0)).params == [expected]
    assert cold.suggest(asked(0)).params != [expected]


def test_failed_and_pruned_trials_and_broken_limits_are_told_as_such():
    wanted = spec(limits=[{"metric": "seconds", "max": 5}])
    study, theirs = fresh(wanted), optuna.create_study(sampler=sampler(wanted.sampler, 7))
    known: list[Known] = []
    states = [TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED]
    for number in range(30):
        told = max(0, number - 1)
        [params] = study.suggest(asked(number, told=told, known=known[told:])).params
        trial = theirs.ask()
        x, y = trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15)
        assert params == {"x": x, "y": y}
        state, over = states[number % 3], x - 3.0
        trial.report(branin_at(x, y), 4)
        trial.set_constraint("0:seconds", over)
        if state == TrialState.COMPLETED:
            theirs.tell(trial, branin_at(x, y))
        else:
            pruned = state == TrialState.PRUNED
            theirs.tell(
                trial,
                state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL,
            )
        known.append(
            Known(
                params=params,
                state=state,
                values=[branin_at(x, y)] if state == TrialState.COMPLETED else [],
                reports=[(4, branin_at(x, y))],
                violations={"0:seconds": over},
            )
        )


def test_the_functions_have_the_minima_that_are_known():
    assert branin_at(3.141592653589793, 2.275) == pytest.approx(BRANIN_MINIMUM, abs=1e-12)
    point = [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]
    assert hartmann6_at(point) == pytest.approx(HARTMANN6_MINIMUM, abs=1e-8)
