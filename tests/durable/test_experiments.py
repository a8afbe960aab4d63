"""Experiments on the real stack: what dies changes nothing, what fails is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import optuna
import pytest

from loomos.client.temporal import connect
from loomos.errors import Conflict, NotFound
from loomos.jobs.experiments import (
    ExperimentState,
    ExperimentStatus,
    TrialRecord,
    TrialState,
)
from loomos.manifest import Experiment, validate_as
from loomos.settings import TemporalSettings
from loomos.weaver.functions import branin_at
from tests.searches import notes
from tests.stack import CORPUS, Stack

BRANIN = {
    "x": {"type": "uniform", "min": -5, "max": 10},
    "y": {"type": "uniform", "min": 0, "max": 15},
}


def experiment(function: str | None, folder: Path | None = None, **spec) -> Experiment:
    objective = spec.pop("objective", None) or {
        "function": f"tests.searches:{function}",
        "arguments": {"folder": str(folder), **spec.pop("arguments", {})},
    }
    return validate_as(
        Experiment,
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "Experiment",
            "metadata": {"name": "search"},
            "spec": {"objective": objective, "parameters": BRANIN, **spec},
        },
    )


async def over(client, experiment_id: str, within_s: float = 120) -> ExperimentStatus:
    async with asyncio.timeout(within_s):
        while True:
            try:
                found = await client.experiments.get(experiment_id)
            except Exception:
                await asyncio.sleep(0.5)
                continue
            if found.state.is_final:
                return found
            await asyncio.sleep(0.1)


async def run(client, document: Experiment, within_s: float = 120):
    started = await client.experiments.start(document)
    ended = await over(client, started.experiment_id, within_s)
    return ended, await client.experiments.all_trials(started.experiment_id)


def outcome(trials: list[TrialRecord]) -> list[tuple]:
    """All of a sweep that must not depend on who was fast or what died."""
    return [(t.number, t.params, t.state, t.values, t.reports, t.rungs) for t in trials]


async def test_an_experiment_whose_trials_all_fail_is_failed(stack: Stack) -> None:
    document = experiment(None, objective={"function": "absent:function"}, trials=2)
    async with stack.client() as client:
        ended, trials = await run(client, document)
    assert [trial.state for trial in trials] == [TrialState.FAILED] * 2
    assert ended.state == ExperimentState.FAILED
    assert ended.message.startswith("every trial failed (2); the last: ")


async def test_one_at_a_time_it_is_optunas_own_run(stack: Stack, tmp_path):
    document = experiment("counted", tmp_path, trials=20, seed=4, arguments={"seconds": 0})
    async with stack.client() as client:
        ended, trials = await run(client, document)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=4))
    study.optimize(
        lambda t: branin_at(t.suggest_float("x", -5, 10), t.suggest_float("y", 0, 15)), n_trials=20
    )
    assert [t.params for t in trials] == [t.params for t in study.trials]
    assert [t.values[0] for t in trials] == [t.value for t in study.trials]
    assert ended.best[0].values[0] == study.best_value
    assert ended.best[0].number == study.best_trial.number
    assert ended.counts == {"completed": 20}


@pytest.mark.slow
async def test_the_control_worker_dies_ten_times_and_nothing_is_run_twice(stack: Stack, tmp_path):
    spec = {
        "trials": 60,
        "parallelism": 4,
        "seed": 11,
        "pruner": {"name": "asha", "reduction_factor": 2},
        "arguments": {"seconds": 0.02},
    }
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    async with stack.client() as client:
        _, expected = await run(client, experiment("stepwise", undisturbed, **spec))
        started = await client.experiments.start(experiment("stepwise", disturbed, **spec))
        kills = 0
        while kills < 10:
            done = sum(note["what"] == "done" for note in notes(disturbed))
            begun = len(notes(disturbed))
            if begun >= 5 * (kills + 1):
                stack.kill("control")
                kills += 1
                await asyncio.sleep(0.3)
            assert done < 60
            await asyncio.sleep(0.05)
        ended = await over(client, started.experiment_id)
        trials = await client.experiments.all_trials(started.experiment_id)
    assert ended.state == "completed", ended.message
    assert outcome(trials) == outcome(expected)
    assert {t.state for t in trials} == {TrialState.COMPLETED, TrialState.PRUNED}
    finished = Counter(n["trial"] for n in notes(disturbed) if n["what"] == "done")
    assert finished == {t.number: 1 for t in trials if t.state == TrialState.COMPLETED}
    assert Counter(n["trial"] for n in notes(disturbed) if n["what"] == "from 0") == {
        number: 1 for number in range(60)
    }


@pytest.mark.slow
async def test_a_trial_goes_on_on_another_node_from_what_it_saved(stack: Stack, tmp_path):
    document = experiment(
        "stepwise", tmp_path, trials=2, parallelism=2, seed=1, arguments={"seconds": 0.5}
    )
    async with stack.client() as client:
        started = await client.experiments.start(document)
        async with asyncio.timeout(60):
            while len(notes(tmp_path)) < 2:
                await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        stack.kill("node-1")
        ended = await over(client, started.experiment_id)
        trials = await client.experiments.all_trials(started.experiment_id)
    assert ended.counts == {"completed": 2}
    begun = [note for note in notes(tmp_path) if note["what"].startswith("from")]
    assert len(begun) == 3, begun
    again = int(begun[-1]["what"].removeprefix("from "))
    assert 1 <= again <= 9
    for trial in trials:  # reports from before and after the death, each once
        assert [step for step, _ in trial.reports] == list(range(1, 11))


async def test_failures_are_told_tried_again_and_survived(stack: Stack, tmp_path):
    hows = ["raises", "raises once", "dies", "gives nothing", "gives nan", "hangs", "is fine", "ok"]
    document = experiment(
        "clumsy",
        tmp_path,
        parameters={"how": {"type": "choice", "values": hows}},
        sampler="grid",
        limits=[{"metric": "seconds", "max": 5}],
        trial_timeout="6s",
        parallelism=2,
        retries=1,
    )
    async with stack.client() as client:
        ended, trials = await run(client, document)
    said = {t.params["how"]: (t.state.value, t.retries, t.error) for t in trials}
    assert said == {
        "raises": ("failed", 1, "RuntimeError: as it was asked to"),
        "raises once": ("completed", 1, ""),
        "dies": ("failed", 1, "the function's process was killed by signal 9"),
        "gives nothing": ("failed", 1, "the function gave no 'value'"),
        "gives nan": ("failed", 1, "value: nan is not finite"),
        "hangs": (
            "failed",
            1,
            "it took longer than spec.trial_timeout; raise that or make trials shorter",
        ),
        "is fine": ("completed", 0, ""),
        "ok": ("completed", 0, ""),
    }
    feasible = {t.params["how"] for t in trials if t.state == "completed" and t.is_feasible}
    assert feasible == {"is fine"}
    assert [t.params["how"] for t in ended.best] == ["is fine"]
    assert ended.message == "the space has no more points"


async def test_a_function_that_is_not_there_fails_the_experiment(stack: Stack, tmp_path):
    async with stack.client() as client:
        ended, trials = await run(client, experiment("absent", tmp_path, trials=50, retries=0))
    assert ended.state == "failed"
    assert "10 trials in a row failed" in ended.message
    assert "'tests.searches:absent' cannot be imported where trials run" in ended.message
    assert len(trials) == 10


async def test_stop_cancel_budget_and_patience(stack: Stack, tmp_path):
    async with stack.client() as client:
        slow = experiment(
            "counted", tmp_path, trials=500, parallelism=2, arguments={"seconds": 0.3}
        )
        first = await client.experiments.start(slow, idempotency_key=f"stop-{tmp_path}")
        again = await client.experiments.start(slow, idempotency_key=f"stop-{tmp_path}")
        assert again.experiment_id == first.experiment_id
        with pytest.raises(Conflict, match="used for another document"):
            other = experiment("counted", tmp_path, trials=499)
            await client.experiments.start(other, idempotency_key=f"stop-{tmp_path}")
        while not (await client.experiments.trials(first.experiment_id)).trials:
            await asyncio.sleep(0.1)
        await client.experiments.stop(first.experiment_id, "seen enough")
        with pytest.raises(Conflict):
            await client.experiments.stop(first.experiment_id)
        ended = await over(client, first.experiment_id)
        assert (ended.state, ended.message) == ("completed", "seen enough")
        assert ended.best

        second = await client.experiments.start(slow)
        while not (await client.experiments.trials(second.experiment_id)).trials:
            await asyncio.sleep(0.1)
        await client.experiments.cancel(second.experiment_id)
        ended = await over(client, second.experiment_id)
        assert ended.state == "cancelled"
        assert set(ended.counts) <= {"completed", "cancelled", "waiting"}
        with pytest.raises(Conflict):
            await client.experiments.cancel(second.experiment_id)

        timed = slow.spec.model_copy(
            update={"budget": slow.spec.budget.model_validate({"max_duration": "5s"})}
        )
        ended, trials = await run(client, slow.model_copy(update={"spec": timed}))
        assert ended.message == "the budget's max_duration is used"
        assert 1 <= len(trials) < 100

        patient = experiment(
            "counted", tmp_path, trials=500, seed=3, stop={"patience": 5}, arguments={"seconds": 0}
        )
        ended, trials = await run(client, patient)
        assert ended.message == "no better trial in 5"
        best = min(trials, key=lambda t: t.values[0])
        assert len(trials) == best.number + 6
        with pytest.raises(NotFound):
            await client.experiments.get("search-00000000")


@pytest.mark.slow
async def test_several_goals_make_a_front_and_a_later_search_learns_from_it(stack, tmp_path):
    unit = {"type": "uniform", "min": 0, "max": 1}
    goals = {
        "parameters": {"x": unit, "y": unit},
        "metrics": [{"name": "f1"}, {"name": "f2"}],
        "sampler": {"name": "nsga2", "population_size": 10},
    }
    async with stack.client() as client:
        ended, trials = await run(
            client, experiment("two_goals", tmp_path, trials=60, parallelism=4, **goals)
        )
        study = optuna.create_study(directions=["minimize", "minimize"])
        for trial in trials:
            study.add_trial(optuna.trial.create_trial(values=trial.values))
        assert [t.number for t in ended.best] == [t.number for t in study.best_trials]
        assert len(ended.best) > 3
        later = experiment(
            "two_goals", tmp_path, trials=5, warm_start=[ended.experiment_id], **goals
        )
        started, _ = await run(client, later)
        said = [event.message for event in started.timeline]
        assert "knows 60 trials of earlier experiments" in said
        with pytest.raises(NotFound):
            await client.experiments.start(
                experiment("two_goals", tmp_path, warm_start=["search-00000000"], **goals)
            )


async def test_a_population_hands_state_over(stack: Stack, tmp_path):
    """Theta is the sum of what its line of parents added: known from the records alone."""
    document = experiment(
        "grows",
        tmp_path,
        parameters={"rate": {"type": "uniform", "min": 0.1, "max": 10.0}},
        population={"size": 4, "generations": 3, "factors": [1.5], "resample": 0.0},
        parallelism=2,
        trials=100,
    )
    async with stack.client() as client:
        ended, trials = await run(client, document)
    assert len(trials) == 12
    theta: dict[int, float] = {}
    for trial in trials:
        before = 0.0 if trial.parent is None else theta[trial.parent]
        for _ in range(5):
            before += trial.params["rate"]
        theta[trial.number] = before
        assert -trial.values[0] == before
    assert all((t.parent is None) == (t.number < 4) for t in trials)
    taken = [t for t in trials if t.parent is not None and t.parent % 4 != t.number % 4]
    assert len(taken) == 2  # one in each later round
    assert ended.best[0].number >= 8


async def test_functions_do_not_see_secrets(stack: Stack, tmp_path):
    async with stack.client() as client:
        _, trials = await run(client, experiment("secrets", tmp_path, trials=1))
    assert trials[0].values == [0.0]


@pytest.mark.slow
async def test_histories_stay_bounded(stack: Stack):
    """A thousand trials and more go through several runs, and none of them is lost or repeated."""
    unit = {"type": "uniform", "min": 0, "max": 1}
    document = experiment(
        None,
        objective={"function": "loomos.weaver.functions:noop"},
        parameters={"x": unit},
        sampler="random",
        trials=1500,
        parallelism=16,
        seed=9,
    )
    async with stack.client() as client:
        ended, trials = await run(client, document, 240)
    assert ended.counts == {"completed": 1500}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=9))
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1500)
    assert [t.params for t in trials] == [t.params for t in study.trials]
    temporal = await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))
    runs = [
        found async for found in temporal.list_workflows(f"WorkflowId = '{ended.experiment_id}'")
    ]
    assert len(runs) >= 2
    assert max(found.history_length for found in runs) < 5_000


# --- trainings ----------------------------------------------------------------------------------


def trainings(**more) -> Experiment:
    training = {
        "model": {
            "base_model": "init:llama",
            "tokenizer": "byte",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "fine_tuning_config": {
                "learning_rate": "{{ rate }}",
                "max_steps": 16,
                "batch_size": 4,
                "sequence_length": 32,
                "scheduler": "constant",
                "evaluate_every": 2,
                "evaluate_sequences": 8,
            },
        },
        "data": {
            "training_dataset": str(CORPUS),
            "include": ["*.py"],
            "validation_split": 0.2,
        },
        "runtime": {"checkpoint_steps": 4},
        **more.pop("training", {}),
    }
    return experiment(
        None,
        objective={"training": training, **more.pop("objective", {})},
        **{"parameters": {"rate": {"type": "log_uniform", "min": 1e-5, "max": 1e-1}}, **more},
    )


@pytest.mark.slow
async def test_trainings_are_pruned_and_a_killed_one_goes_on_the_same(stack: Stack):
    document = trainings(
        parameters={"rate": {"type": "choice", "values": [1e-2, 2e-2, 1e-5, 2e-5, 1.5e-2, 3e-5]}},
        sampler="grid",
        parallelism=2,
        lookahead=2,
        pruner={"name": "asha", "min_resource": 4, "reduction_factor": 2},
    )
    async with stack.client() as client:
        _, expected = await run(client, document, 240)
        started = await client.experiments.start(document)
        while len((await client.experiments.trials(started.experiment_id)).trials) < 2:
            await asyncio.sleep(0.05)
        stack.kill("node-1")
        ended = await over(client, started.experiment_id, 240)
        trials = await client.experiments.all_trials(started.experiment_id)
    assert ended.state == "completed", ended.message
    assert outcome(trials) == outcome(expected)
    pruned = {t.params["rate"] for t in trials if t.state == TrialState.PRUNED}
    assert pruned >= {1e-5, 2e-5, 3e-5} and not pruned & {1e-2, 2e-2}
    for trial in trials:
        steps = [step for step, _ in trial.reports]
        if trial.state == TrialState.COMPLETED:
            assert steps == [2, 4, 6, 8, 10, 12, 14, 16]
            assert trial.values == [trial.reports[-1][1]]
            assert trial.metrics["steps"] == 16
        else:
            assert steps == list(range(2, steps[-1] + 1, 2)) and steps[-1] in (4, 8)


@pytest.mark.slow
async def test_a_population_of_trainings_hands_checkpoints_over(stack: Stack):
    document = trainings(
        population={"size": 3, "generations": 2, "resample": 0.0, "quantile": 0.34},
        parallelism=2,
        trials=6,
        seed=5,
    )
    async with stack.client() as client:
        _, trials = await run(client, document, 240)
    assert [t.state for t in trials] == [TrialState.COMPLETED] * 6, [t.error for t in trials]
    first, second = trials[:3], trials[3:]
    worst = max(first, key=lambda t: t.values[0])
    best = min(first, key=lambda t: t.values[0])
    assert second[worst.number].parent == best.number
    for trial in second:
        assert trial.parent is not None
        # it goes on where its parent was: two more evaluations' worth of steps, none repeated
        assert [step for step, _ in trial.reports] == list(range(18, 33, 2))
        assert trial.reports[0][1] < trials[trial.parent].reports[0][1]


@pytest.mark.slow
async def test_a_trial_may_be_a_job_of_its_own(stack: Stack):
    document = trainings(
        objective={"own_page": True},
        training={"resources": {"nodes": 2}},
        trials=2,
        seed=2,
    )
    async with stack.client() as client:
        ended, trials = await run(client, document, 240)
        assert ended.counts == {"completed": 2}, [t.error for t in trials]
        job = await client.get_job_status(f"{ended.experiment_id}-t1")
        assert job.state == "completed"
        assert job.labels == {"experiment": ended.experiment_id}
        assert job.training is not None
        assert trials[1].values == [job.training.validation_loss]
        assert job.published is not None
