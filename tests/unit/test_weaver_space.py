"""What may be searched, what is refused, what is best, who takes over from whom."""

from __future__ import annotations

import random

import optuna
import pytest

from loomos.errors import InvalidManifest
from loomos.jobs.experiments import TrialRecord, TrialState
from loomos.manifest import Experiment, ExperimentSpec, holds, validate_as
from loomos.weaver.population import offspring
from loomos.weaver.results import best, enough, violations
from loomos.weaver.space import contains

X = {"type": "uniform", "min": 0, "max": 1}
TRAINING = {
    "model": {
        "base_model": "init:llama",
        "tokenizer": "byte",
        "config": {"hidden_size": "{{ width }}"},
        "fine_tuning_config": {"learning_rate": "{{ rate }}", "max_steps": 10},
    },
    "data": {"training_dataset": "/data", "validation_split": 0.1},
}
TRAINED = {
    "objective": {"training": TRAINING},
    "parameters": {
        "rate": {"type": "log_uniform", "min": 1e-4, "max": 1e-1},
        "width": {"type": "choice", "values": [64, 128]},
    },
}


def document(**spec):
    base = {"objective": {"function": "a:b"}, "parameters": {"x": X}}
    return {
        "apiVersion": "loomos.ai/v1",
        "kind": "Experiment",
        "metadata": {"name": "e"},
        "spec": {**base, **spec},
    }


def spec(**changes) -> ExperimentSpec:
    return validate_as(Experiment, document(**changes)).spec


def done(number, *values, **more):
    return TrialRecord(
        number=number, params={}, state=TrialState.COMPLETED, values=list(values), **more
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objective": {}}, "give function or training"),
        ({"parameters": {}}, "at least 1"),
        ({"parameters": {"x": {"type": "uniform", "min": 2, "max": 1}}}, "min must not be above"),
        ({"parameters": {"x": {"type": "log_uniform", "min": 0, "max": 1}}}, "above 0"),
        ({"parameters": {"x": {"type": "int_uniform", "min": 0.5, "max": 1}}}, "must be whole"),
        ({"parameters": {"x": {"type": "choice"}}}, "needs values"),
        ({"parameters": {"x": {"type": "choice", "values": [1, 1]}}}, "one twice"),
        ({"parameters": {"x": {**X, "when": {"y": 1}}}}, "not an earlier parameter"),
        ({"parameters": {"2x": X}}, "does not match"),
        ({"constraints": ["x < z"]}, "'z', which is no parameter"),
        ({"constraints": ["x.real < 1"]}, "only comparisons"),
        ({"constraints": ["__import__('os').system('true')"]}, "only comparisons"),
        ({"constraints": ["x <"]}, "is no condition"),
        ({"constraints": ["2 ** x < 1"]}, "only comparisons"),
        ({"sampler": "grid"}, "finitely many"),
        ({"sampler": "annealing"}, "tpe"),
        ({"sampler": "cmaes", "metrics": [{"name": "a"}, {"name": "b"}]}, "one metric"),
        ({"pruner": "asha", "metrics": [{"name": "a"}, {"name": "b"}]}, "exactly one metric"),
        ({"metrics": [{"name": "a"}, {"name": "a"}]}, "a name twice"),
        ({"pruner": "hyperband"}, "max_resource"),
        ({"limits": [{"metric": "a"}]}, "min, max or both"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"trials": 2001}, "less than or equal to 2000"),
        ({**TRAINED, "metrics": [{"name": "accuracy"}]}, "no metric 'accuracy'"),
        ({**TRAINED, "parameters": {"rate": X}}, "uses {{ width }}"),
        (
            {**TRAINED, "parameters": {**TRAINED["parameters"], "more": X}},
            "parameters.more is not used",
        ),
        (
            {**TRAINED, "objective": {"training": {**TRAINING, "resources": {"nodes": 2}}}},
            "own_page: true",
        ),
        (
            {
                **TRAINED,
                "objective": {"training": {**TRAINING, "data": {"training_dataset": "/data"}}},
            },
            "validation_loss needs",
        ),
        (
            {**TRAINED, "objective": {"training": {**TRAINING, "modle": {}}}},
            "did you mean model",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_fix(wrong, message):
    with pytest.raises(InvalidManifest) as error:
        spec(**wrong)
    assert message in str(error.value)


def test_everything_that_is_wrong_with_an_experiment_is_said_at_once():
    two = [{"name": "a"}, {"name": "b"}]
    with pytest.raises(InvalidManifest) as error:
        spec(constraints=["x <", "x < z"], sampler="cmaes", pruner="asha", metrics=two)
    assert [(fault.path, fault.message) for fault in error.value.errors] == [
        ("spec", "'x <' is no condition; write for example batch_size * 4 <= 256"),
        ("spec", "constraints: 'x < z' names 'z', which is no parameter"),
        ("spec", "sampler cmaes knows one metric; use tpe, gp or nsga2"),
        ("spec", "pruner and population need exactly one metric"),
    ]


def test_everything_that_is_wrong_with_a_template_is_said_at_once():
    training = {
        **TRAINING,
        "data": {"training_dataset": "/data"},
        "resources": {"nodes": 2},
        "verify": {},
    }
    with pytest.raises(InvalidManifest) as error:
        spec(**{**TRAINED, "objective": {"training": training}, "metrics": [{"name": "accuracy"}]})
    messages = [fault.message for fault in error.value.errors]
    assert [message.split(";")[0] for message in messages] == [
        "a training has no metric 'accuracy'",
        "objective.training: validation_loss needs data.validation_dataset or "
        "data.validation_split",
        "objective.training: verify and rollout are for the model that you choose in the end",
        "objective.training: a trial in the pool has one node",
    ]


def test_a_training_takes_its_parameters():
    wanted = spec(**TRAINED)
    assert [metric.name for metric in wanted.metrics] == ["validation_loss"]
    training = wanted.training_spec({"rate": 0.01, "width": 128})
    assert training.model is not None
    assert training.model.fine_tuning_config.learning_rate == 0.01
    assert training.model.config == {"hidden_size": 128}


def test_a_parameter_that_does_not_apply_leaves_no_key():
    training = {
        **TRAINING,
        "model": {
            **TRAINING["model"],
            "fine_tuning_config": {
                "learning_rate": "{{ rate }}",
                "max_steps": 10,
                "scheduler": "{{ schedule }}",
                "warmup_steps": "{{ warmup }}",
            },
        },
    }
    wanted = spec(
        objective={"training": training},
        parameters={
            **TRAINED["parameters"],
            "schedule": {"type": "choice", "values": ["constant", "cosine"]},
            "warmup": {"type": "int_uniform", "min": 1, "max": 9, "when": {"schedule": "cosine"}},
        },
    )
    without = wanted.training_spec({"rate": 0.01, "width": 64, "schedule": "constant"})
    with_it = wanted.training_spec({"rate": 0.01, "width": 64, "schedule": "cosine", "warmup": 7})
    assert without.model and without.model.fine_tuning_config.warmup_steps == 0
    assert with_it.model and with_it.model.fine_tuning_config.warmup_steps == 7


def test_conditions_compute_as_python_does_and_ignore_what_has_no_value():
    values = {"a": 3, "b": 4.5, "c": "x"}
    for condition in (
        "a * 2 < b + 2",
        "1 < a <= 3",
        "c in ['x', 'y'] and not a == 4",
        "-a // 2 == -2",
    ):
        assert holds(condition, values) is bool(eval(condition, {}, values))
    assert holds("missing > 3", values)
    with pytest.raises(ValueError, match="cannot be computed"):
        holds("a / 0 > 1", values)


def test_earlier_points_must_fit():
    wanted = spec(
        parameters={
            "k": {"type": "choice", "values": ["a", "b"]},
            "x": {**X, "when": {"k": "a"}},
            "n": {"type": "int_uniform", "min": 1, "max": 3},
        },
        constraints=["n < 3 or k == 'a'"],
    )
    assert contains(wanted, {"k": "a", "x": 0.5, "n": 3})
    assert contains(wanted, {"k": "b", "n": 2})
    for misfit in (
        {"k": "b", "x": 0.5, "n": 2},
        {"k": "a", "n": 2},
        {"k": "a", "x": 1.5, "n": 2},
        {"k": "a", "x": 0.5, "n": 2.5},
        {"k": "a", "x": 0.5, "n": True},
        {"k": "b", "n": 3},
        {"k": "c", "n": 2},
        {"k": "b", "n": 2, "more": 1},
    ):
        assert not contains(wanted, misfit), misfit


# --- results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_front_is_optunas(seed):
    chance = random.Random(seed)
    wanted = spec(metrics=[{"name": "a"}, {"name": "b", "direction": "maximize"}])
    trials = [done(n, chance.randint(0, 8), chance.randint(0, 8)) for n in range(40)]
    study = optuna.create_study(directions=["minimize", "maximize"])
    for trial in trials:
        study.add_trial(optuna.trial.create_trial(values=trial.values))
    assert [t.number for t in best(wanted, trials)] == [t.number for t in study.best_trials]


def test_only_feasible_trials_are_best():
    wanted = spec(
        metrics=[{"name": "score", "direction": "maximize"}],
        limits=[{"metric": "seconds", "max": 5}, {"metric": "score", "min": 1}],
    )
    slow = done(0, 9.0, metrics={"seconds": 6.0})
    silent = done(1, 8.0)
    good = done(2, 7.0, metrics={"seconds": 5.0})
    assert violations(wanted, slow) == {"0:seconds": 1.0, "1:score": -8.0}
    assert violations(wanted, silent)["0:seconds"] == 1.0
    assert max(violations(wanted, good).values()) == 0.0
    slow, silent = (t.model_copy(update={"is_feasible": False}) for t in (slow, silent))
    assert best(wanted, [slow, silent, good]) == [good]
    assert best(wanted, [slow, silent]) == []


def test_patience_and_target_look_at_trials_in_order():
    patient = spec(stop={"patience": 3, "min_delta": 0.1})
    trials = [done(0, 1.0), done(1, 0.5), done(2, 0.45), done(3, 0.6), done(4, 0.41)]
    assert enough(patient, trials[:4]) == ""
    assert enough(patient, trials) == "no better trial in 3"
    unfinished = [*trials[:2], TrialRecord(number=2, params={}), *trials[3:]]
    assert enough(patient, unfinished) == ""
    assert enough(spec(stop={"target": 0.5}), trials) == "trial 1 reached the target"


def test_the_budget_counts_every_trial_that_cost_something():
    bounded = spec(budget={"max_cost": 2.5}, stop={"target": 0.0})
    trials = [
        done(0, 1.0, cost=1.0),
        TrialRecord(number=1, params={}, state=TrialState.FAILED, cost=1.0),
        done(2, 0.5, cost=0.25),
    ]
    assert enough(bounded, trials) == ""
    pruned = TrialRecord(number=3, params={}, state=TrialState.PRUNED, cost=0.25)
    assert enough(bounded, [*trials, pruned]) == "the budget's max_cost is used"
    assert enough(bounded, [*trials, done(3, -1.0, cost=9.0)]) == "trial 3 reached the target"


# --- populations --------------------------------------------------------------------------------


def population(**more):
    return spec(
        parameters={
            "rate": {"type": "log_uniform", "min": 1e-4, "max": 1.0},
            "kind": {"type": "choice", "values": ["a", "b", "c"]},
            "depth": {"type": "int_uniform", "min": 1, "max": 9, "when": {"kind": ["b", "c"]}},
        },
        population={"size": 8, "generations": 3, "resample": 0.0, **more},
        constraints=["rate < 0.9"],
    )


def test_the_worst_take_over_from_the_best_and_the_others_go_on():
    wanted = population()
    previous = [
        TrialRecord(
            number=n,
            params={"rate": 0.01 * (n + 1), "kind": "b", "depth": 5},
            state=TrialState.FAILED if n == 3 else TrialState.COMPLETED,
            values=[] if n == 3 else [float(n)],
        )
        for n in range(8)
    ]
    made = [offspring(wanted, 8 + member, previous) for member in range(8)]
    assert made == [offspring(wanted, 8 + member, previous) for member in range(8)]
    for member, (params, parent) in enumerate(made):
        if member in (3, 7):  # it failed; it was the worst
            assert parent in (0, 1)
            assert params["rate"] in [
                pytest.approx(previous[parent].params["rate"] * factor) for factor in (0.8, 1.2)
            ]
            assert params["kind"] in ("a", "c")
            assert ("depth" in params) == (params["kind"] == "c")
        else:
            assert (params, parent) == (previous[member].params, member)


def test_offspring_stay_in_the_space():
    wanted = population(resample=0.5, factors=[0.5, 2.0])
    chance = random.Random(0)
    previous = [
        TrialRecord(
            number=n,
            params={"rate": chance.choice([1e-4, 0.89]), "kind": "c", "depth": 9},
            state=TrialState.COMPLETED,
            values=[chance.uniform(0, 1)],
        )
        for n in range(8)
    ]
    for number in range(8, 200):
        params, _ = offspring(wanted, number, previous)
        assert contains(wanted, params), params
