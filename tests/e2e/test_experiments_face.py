"""Experiments as people and programs meet them: the command line, the seeds' Weaver."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from loomos.client.http import LoomOSClient
from loomos.core.weaver import ExperimentConfig, HyperparameterSpace, Weaver
from loomos.errors import InvalidInput, NotFound
from loomos.weaver.functions import branin_at
from tests.stack import CORPUS, Stack

DOCUMENT = {
    "apiVersion": "loomos.ai/v1",
    "kind": "Experiment",
    "metadata": {"name": "branin"},
    "spec": {
        "objective": {"function": "loomos.weaver.functions:branin"},
        "parameters": {
            "x": {"type": "uniform", "min": -5, "max": 10},
            "y": {"type": "uniform", "min": 0, "max": 15},
        },
        "trials": 12,
        "parallelism": 2,
    },
}


async def test_the_commands(stack: Stack, tmp_path: Path):
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(DOCUMENT))
    followed = stack.loomos("experiments", "run", "-f", str(file), "--follow").stdout
    assert followed.count("completed") >= 12 and "every trial has ended" in followed
    listed = json.loads(stack.loomos("experiments", "list", "-o", "json").stdout)["experiments"]
    found = next(e for e in listed if e["name"] == "branin")
    name = found["experiment_id"]
    assert (found["state"], found["trials"]) == ("completed", 12)

    trials = json.loads(stack.loomos("experiments", "trials", name, "-o", "json").stdout)
    assert [t["number"] for t in trials] == list(range(12))
    for trial in trials:
        assert trial["values"] == [branin_at(trial["params"]["x"], trial["params"]["y"])]
    [best] = json.loads(stack.loomos("experiments", "best", name, "-o", "json").stdout)
    assert best["values"][0] == min(t["values"][0] for t in trials) == found["best"][0]
    assert f"trial {best['number']}" in stack.loomos("experiments", "status", name).stdout

    exported = stack.loomos("experiments", "export", name).stdout
    rows = list(csv.DictReader(io.StringIO(exported)))
    assert [float(row["value"]) for row in rows] == [t["values"][0] for t in trials]
    assert [float(row["x"]) for row in rows] == [t["params"]["x"] for t in trials]
    target = tmp_path / "trials.json"
    stack.loomos("experiments", "export", name, "--format", "json", "--file", str(target))
    assert json.loads(target.read_text()) == trials

    for kind, suffix in (("history", "png"), ("importance", "html"), ("parallel", "png")):
        picture = tmp_path / f"{kind}.{suffix}"
        stack.loomos("experiments", "plot", name, "--kind", kind, "--file", str(picture))
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG") if suffix == "png" else b"plotly" in content
        assert len(content) > 10_000

    assert stack.loomos("experiments", "delete", name).stdout == f"deleted {name}\n"
    while stack.loomos("experiments", "status", name, check=False).returncode != 2:
        pass  # Temporal deletes its record in the background


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "branin-00000000"], "no experiment 'branin-00000000'"),
        (["status", "loomos-cluster"], "no experiment 'loomos-cluster'"),
        (["best", "branin-00000000"], "no experiment"),
        (["stop", "branin-00000000"], "no experiment"),
        (["cancel", "branin-00000000"], "no experiment"),
        (["run", "-f", "absent.yaml"], "absent.yaml"),
    ],
)
def test_errors_are_one_line(stack: Stack, arguments: list[str], message: str):
    done = stack.loomos("experiments", *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_wrong_document_is_refused_with_its_path(stack: Stack, tmp_path: Path):
    file = tmp_path / "experiment.yaml"
    wrong = {**DOCUMENT, "spec": {**DOCUMENT["spec"], "sampler": "annealing", "trails": 3}}
    file.write_text(yaml.safe_dump(wrong))
    done = stack.loomos("experiments", "run", "-f", str(file), check=False)
    assert done.returncode == 2
    assert "spec.sampler.name" in done.stderr and "did you mean trials" in done.stderr


async def test_the_weaver_of_the_documentation(
    client: LoomOSClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The conceived call for call, on a data set and sizes for a small machine."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CORPUS, "openorca", ignore=shutil.ignore_patterns("__pycache__"))
    weaver = Weaver(client)
    search_space = HyperparameterSpace(
        {
            "learning_rate": {"type": "log_uniform", "min": 1e-6, "max": 1e-2},
            "batch_size": {"type": "choice", "values": [2, 4]},
            "num_layers": {"type": "int_uniform", "min": 1, "max": 2},
            "hidden_size": {"type": "choice", "values": [16, 32]},
        }
    )
    config = ExperimentConfig(
        model_type="transformer",
        model_config={"num_attention_heads": 2, "intermediate_size": 32},
        dataset="openorca",
        max_epochs=10,
        early_stopping_patience=3,
        fine_tuning={"max_steps": 6, "sequence_length": 32, "evaluate_sequences": 4},
    )
    experiment = await weaver.create_experiment(
        name="gpt_hyperparameter_optimization",
        base_config=config,
        search_space=search_space,
        optimization_strategy="bayesian",
        max_trials=4,
        parallelism=2,
    )
    await weaver.run_experiment(experiment.id)
    updates = [update async for update in weaver.stream_experiment_progress(experiment.id)]
    assert sorted(update.trial_id for update in updates) == [0, 1, 2, 3]
    assert {update.metric_name for update in updates} == {"validation_loss"}
    best_trial = await weaver.get_best_trial(experiment.id)
    assert best_trial.score == min(update.metric_value for update in updates)
    assert best_trial.hyperparameters.keys() == set(search_space.parameters)
    assert (await weaver.run_experiment(experiment.id)).experiment_id == experiment.id


async def test_what_the_weaver_cannot_make_is_said_at_once(client: LoomOSClient, tmp_path: Path):
    weaver, config = Weaver(client), ExperimentConfig(dataset=str(tmp_path))

    def space(name: str) -> HyperparameterSpace:
        return HyperparameterSpace({name: {"type": "uniform", "min": 0, "max": 1}})

    with pytest.raises(InvalidInput, match="no 'lerning_rate'"):
        await weaver.create_experiment(
            name="a", base_config=config, search_space=space("lerning_rate")
        )
    with pytest.raises(InvalidInput, match="dataset: there is no file or folder 'absent'"):
        await weaver.create_experiment(
            name="a",
            base_config=ExperimentConfig(dataset="absent"),
            search_space=space("weight_decay"),
        )
    with pytest.raises(InvalidInput, match=r"spec\.sampler"):
        await weaver.create_experiment(
            name="a",
            base_config=config,
            search_space=space("weight_decay"),
            optimization_strategy="annealing",
        )
    with pytest.raises(NotFound):
        await weaver.get_best_trial("a-00000000")
