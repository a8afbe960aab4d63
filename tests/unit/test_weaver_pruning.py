"""Each decision is the one that Optuna's pruner would make of the same trials."""

from __future__ import annotations

import random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomos.jobs.experiments import TrialRecord, TrialState
from loomos.manifest import ExperimentSpec
from loomos.weaver.pruning import Judge, bracket_of, rule_for, study_name

PRUNERS = {
    "asha": (
        {"name": "asha", "min_resource": 2, "reduction_factor": 3},
        lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    ),
    "hyperband": (
        {"name": "hyperband", "min_resource": 1, "max_resource": 30, "reduction_factor": 3},
        lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=30, reduction_factor=3),
    ),
    "median": (
        {"name": "median", "startup_trials": 3, "warmup_steps": 4, "interval_steps": 3},
        lambda: optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=4, interval_steps=3),
    ),
    "percentile": (
        {"name": "percentile", "percentile": 30.0, "startup_trials": 1},
        lambda: optuna.pruners.PercentilePruner(30.0, n_startup_trials=1),
    ),
}


def spec(pruner, direction="minimize", seed=3):
    return ExperimentSpec.model_validate(
        {
            "objective": {"function": "a:b"},
            "parameters": {"x": {"type": "uniform", "min": 0, "max": 1}},
            "metrics": [{"name": "value", "direction": direction}],
            "pruner": pruner,
            "seed": seed,
        }
    )


@pytest.mark.parametrize("name", PRUNERS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    direction=st.sampled_from(["minimize", "maximize"]),
    stride=st.integers(1, 7),
)
def test_decisions_are_optunas(name, seed, direction, stride):
    """One trial after the other, so that both know the same."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ours, theirs = PRUNERS[name]
    wanted, chance = spec(ours, direction), random.Random(seed)
    study = optuna.create_study(
        study_name=study_name(wanted.seed), direction=direction, pruner=theirs()
    )
    known: list[TrialRecord] = []
    decisions = set()
    for number in range(20):
        trial = study.ask()
        judge = Judge(rule_for(wanted, number, known))
        reports, state = [], TrialState.COMPLETED
        level = chance.uniform(0, 1)
        for step in range(chance.randint(0, 2), 31, stride):
            value = round(level + chance.uniform(-0.3, 0.3), 1)
            trial.report(value, step)
            reports.append((step, value))
            gives_up = judge.report(step, value)
            assert gives_up == trial.should_prune(), (number, step)
            decisions.add(gives_up)
            if gives_up:
                state = TrialState.PRUNED
                break
        is_pruned = state == TrialState.PRUNED
        study.tell(
            trial,
            None if is_pruned else reports[-1][1],
            optuna.trial.TrialState.PRUNED if is_pruned else None,
        )
        known.append(
            TrialRecord(number=number, params={}, state=state, reports=reports, rungs=judge.rungs)
        )
    assert decisions == {True, False}


def test_brackets_are_optunas():
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=81, reduction_factor=3)
    study = optuna.create_study(study_name=study_name(5), pruner=pruner)
    wanted = spec({"name": "hyperband", "max_resource": 81, "reduction_factor": 3}, seed=5).pruner
    pruner.prune(study, study.trials[0] if study.trials else _reported(study))
    expected = []
    for _ in range(200):
        trial = study.ask()
        expected.append(pruner._get_bracket_id(study, study.trials[-1]))
        study.tell(trial, 0.0)
    assert [bracket_of(wanted, 5, number + 1) for number in range(200)] == expected
    assert set(expected) == {0, 1, 2, 3, 4}


def _reported(study):
    trial = study.ask()
    trial.report(1.0, 1)
    return study.trials[-1]


def test_nothing_is_pruned_without_a_pruner():
    assert rule_for(spec("none"), 3, []) is None
    assert not Judge(None).report(1, 1e9)


def test_a_retry_that_reports_the_same_is_judged_the_same():
    known = [
        TrialRecord(number=n, params={}, state=TrialState.COMPLETED, reports=[(2, n / 10)], rungs=1)
        for n in range(6)
    ]
    rule = rule_for(spec({"name": "asha", "min_resource": 2, "reduction_factor": 2}), 6, known)
    assert rule is not None
    # seven at the rung, two of them better than 0.2: the third is the last that goes on
    assert rule.bars[0].value == 0.2
    assert not Judge(rule).report(2, 0.2)
    assert Judge(rule).report(2, 0.21)
