"""Policies that learn, by real ranks: exact resume, and what they publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from activities.rank_host import RankHost
from loomos.client.http import LoomOSClient
from loomos.jobs.states import JobState
from loomos.jobs.training import CheckpointRef
from loomos.manifest import JobManifest, ManifestValidator, TrainingSpec
from loomos.rl.evaluation import returns
from loomos.rl.making import environment_maker
from loomos.rl.policies import load_policy
from tests.gangs import Lab, resumes_to_the_same_bits
from tests.stack import Stack

MakeLab = Callable[..., Lab]

EXAMPLES = Path(__file__).parents[2] / "examples" / "rl"


def read_yaml(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


@pytest.fixture
def policy_lab(tmp_path: Path, rank_host: RankHost) -> MakeLab:
    def make(environment: Any = "CartPole-v1", algorithm: str = "ppo", **changes: Any) -> Lab:
        ppo = {
            "total_timesteps": 30 * 256,
            "batch_size": 256,
            "n_epochs": 2,
            "evaluate_episodes": 2,
            "evaluate_every": 30,
            **changes,
        }
        spec = {
            "algorithm": algorithm,
            "environment": environment,
            algorithm: ppo,
            "runtime": {"checkpoint_steps": 10, "checkpoint_interval": "1h"},
        }
        return Lab(tmp_path, rank_host, TrainingSpec.model_validate(spec))

    return make


@pytest.mark.parametrize(
    ("environment", "changes", "nodes", "ranks"),
    [
        pytest.param("CartPole-v1", {}, 1, 1, id="discrete", marks=pytest.mark.slow),
        pytest.param("CartPole-v1", {}, 2, 1, id="two nodes"),
        pytest.param(
            "Pendulum-v1",
            {"normalize_observations": True, "normalize_rewards": True, "anneal_clip": True},
            1,
            1,
            id="continuous, scaled",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "LunarLander-v3", {"target_kl": 0.01}, 1, 1, id="Box2D", marks=pytest.mark.slow
        ),
        pytest.param(
            {"name": "loomos/DeepSea-v0", "config": {"size": 12}},
            {
                "algorithm": "weave",
                "critics": 3,
                "exploration_strategies": ["entropy_based", "curiosity_driven", "ucb_exploration"],
            },
            2,
            1,
            id="weave on two nodes",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "name": "math",
                "config": {"max_steps": 6, "curriculum": {"success_threshold": 0.01, "window": 5}},
            },
            {},
            1,
            1,
            id="math with a curriculum",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_a_killed_policy_resumes_to_the_same_bits(
    policy_lab: MakeLab, environment: Any, changes: dict[str, Any], nodes: int, ranks: int
) -> None:
    undisturbed, disturbed = policy_lab(environment, **changes), policy_lab(environment, **changes)
    await resumes_to_the_same_bits(undisturbed, disturbed, nodes, ranks)


@pytest.mark.slow
async def test_a_policy_is_learned_on_the_stack_though_its_node_is_killed(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    document = read_yaml(EXAMPLES / "cartpole.yaml")
    document["spec"]["ppo"]["evaluate_every"] = 98  # the last: others would checkpoint as well
    quiet = await client.submit_job_from_manifest(JobManifest.from_dict(document))
    undisturbed = await stack.until(client, quiet.job_id, JobState.COMPLETED, JobState.FAILED)
    assert undisturbed.state == JobState.COMPLETED, undisturbed.message

    job = await client.submit_job_from_manifest(JobManifest.from_dict(document))
    running = await stack.eventually(
        lambda: client.get_job_status(job.job_id),
        lambda found: found.training is not None and found.training.step >= 25,
    )
    assert running.training is not None
    stack.kill("rank")
    done = await stack.until(client, job.job_id, JobState.COMPLETED, JobState.FAILED)

    assert done.state == JobState.COMPLETED, done.message
    assert len(done.attempts) == 2
    assert done.training is not None and done.training.episode_return is not None
    assert done.training.environment_steps_per_s is not None
    assert done.published is not None and undisturbed.published is not None
    assert done.published.weights_sha256 == undisturbed.published.weights_sha256
    stack.loomos("jobs", "download", job.job_id, "--output", str(tmp_path))
    policy = load_policy(tmp_path)
    found = returns(
        environment_maker(policy.environment), policy.agent, None, episodes=list(range(20)), seed=99
    )
    assert sum(found) / len(found) > 400


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": None}, "needs spec.environment"),
        (
            {"model": {"base_model": "init:llama", "tokenizer": "byte"}},
            "language models talk with math, game",
        ),
        ({"algorithm": "weave", "model": {"base_model": "/a"}}, "remove spec.model"),
        ({"ppo": {"batch_size": 100, "n_environments": 8}}, "must be a multiple of n_environments"),
        ({"strategy": {"type": "fsdp2"}}, "set strategy.type: ddp"),
    ],
)
def test_manifests_that_make_no_sense_say_what_to_change(change: dict[str, Any], said: str) -> None:
    document = read_yaml(EXAMPLES / "cartpole.yaml")
    document["spec"] = {k: v for k, v in {**document["spec"], **change}.items() if v is not None}
    found = ManifestValidator().validate(JobManifest.from_dict(document))
    assert not found.is_valid
    assert said in found.errors[0].message


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "weave"])
async def test_a_policy_goes_on_with_another_number_of_ranks(
    policy_lab: MakeLab, algorithm: str
) -> None:
    lab = policy_lab(algorithm=algorithm, total_timesteps=60 * 256, learning_rate=2e-3)
    await lab.run(2, 1, at_step=37)
    resumed = await lab.run(1, 1)
    assert resumed.outcome.resumed_from == CheckpointRef(generation=1, step=30)
    assert resumed.outcome.step == 60
    assert resumed.outcome.episode_return is not None
    assert resumed.outcome.episode_return > 60  # chance is 22: what was learned is kept


async def test_a_run_that_dies_after_its_last_step_still_tells_how_it_did(
    policy_lab: MakeLab,
) -> None:
    lab = policy_lab()
    whole = await lab.run(1, 1)
    again = await lab.run(1, 1)  # a new attempt: all that is left to do is to end
    assert again.outcome.resumed_from == whole.outcome.checkpoint
    assert whole.outcome.episode_return is not None
    assert again.outcome.episode_return == whole.outcome.episode_return
    assert again.outcome.loss == whole.outcome.loss


async def test_an_environment_that_is_not_there_fails_the_job_at_once(
    policy_lab: MakeLab,
) -> None:
    attempt = await policy_lab("CartPole-v77").run(1, 1)
    assert attempt.failures[0]["type"] == "InvalidInput"
    assert "CartPole-v77" in attempt.failures[0]["message"]


# --- language models ----------------------------------------------------------------------------

TINY_MODEL = {
    "base_model": "init:llama",
    "tokenizer": "byte",
    "config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
}


@pytest.fixture
def language_lab(tmp_path: Path, rank_host: RankHost) -> MakeLab:
    pairs = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"{n} + 1 =", "chosen": f" {n + 1}", "rejected": f" {n + 2}."} for n in range(90)
    ]
    pairs.write_text("\n" + "".join(json.dumps(line) + "\n" for line in lines))  # a blank line

    def make(algorithm: str, *, tuning: Any = None, **changes: Any) -> Lab:
        options = {
            "max_steps": 30,
            "batch_size": 16,
            "sequence_length": 64,
            "learning_rate": 1e-3,
            "evaluate_every": 30,
            "evaluate_sequences": 8,
            **(tuning or {}),
        }
        spec: dict[str, Any] = {
            "algorithm": algorithm,
            "model": {**TINY_MODEL, "fine_tuning_config": options},
            "runtime": {"checkpoint_steps": 10, "checkpoint_interval": "1h"},
        }
        turns = changes.pop("turns", False)
        if algorithm == "dpo":
            spec["data"] = {"training_dataset": str(pairs), "validation_split": 0.1}
        else:
            spec["environment"] = {"name": "math", "config": {"terse": True, **ANY_NUMBER}}
        if turns:
            spec["environment"] = {"name": "tool_call", "config": {"max_steps": 2}}
            options |= {"sequence_length": 2048, "batch_size": 4, "evaluate_sequences": 2}
        settings: dict[str, Any] = {} if algorithm == "dpo" else {"max_completion_tokens": 8}
        if algorithm == "grpo":
            settings["group_size"] = 2 if turns else 4
        spec["language_ppo" if algorithm == "ppo" else algorithm] = {**settings, **changes}
        return Lab(tmp_path, rank_host, TrainingSpec.model_validate(spec))

    return make


ANY_NUMBER = {"curriculum": {"success_threshold": 0.01, "window": 8}}
"""A ladder that is climbed by luck, so that its state matters."""


@pytest.mark.parametrize(
    ("algorithm", "changes", "nodes"),
    [
        pytest.param("grpo", {}, 1, id="grpo", marks=pytest.mark.slow),
        pytest.param(
            "grpo",
            {"loss_type": "dr_grpo", "scale_rewards": "none"},
            2,
            id="dr grpo",
            marks=pytest.mark.slow,
        ),
        pytest.param("grpo", {"beta": 0.04, "iterations": 2}, 1, id="grpo with a reference"),
        pytest.param(
            "grpo",
            {"beta": 0.04, "tuning": {"method": "lora", "micro_batch_size": 4}},
            1,
            id="grpo with lora",
            marks=pytest.mark.slow,
        ),
        pytest.param("grpo", {"turns": True}, 1, id="grpo in turns", marks=pytest.mark.slow),
        pytest.param(
            "ppo",
            {"n_epochs": 2, "minibatch_size": 8},
            2,
            id="ppo with a value head",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ppo",
            {"turns": True, "n_epochs": 1, "beta": 0.0},
            1,
            id="ppo in turns",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "ppo",
            {"tuning": {"method": "lora", "micro_batch_size": 4}},
            1,
            id="ppo with lora",
            marks=pytest.mark.slow,
        ),
        pytest.param("dpo", {}, 1, id="dpo", marks=pytest.mark.slow),
        pytest.param(
            "dpo", {"tuning": {"method": "qlora"}}, 2, id="dpo with qlora", marks=pytest.mark.slow
        ),
    ],
)
async def test_a_killed_language_model_resumes_to_the_same_bits(
    language_lab: MakeLab, algorithm: str, changes: dict[str, Any], nodes: int
) -> None:
    undisturbed, disturbed = language_lab(algorithm, **changes), language_lab(algorithm, **changes)
    await resumes_to_the_same_bits(undisturbed, disturbed, nodes)


async def test_dpo_learns_to_prefer_what_is_preferred(language_lab: MakeLab) -> None:
    lab = language_lab("dpo", tuning={"max_steps": 60, "learning_rate": 3e-3})
    done = await lab.run(1, 1)
    assert done.outcome.loss is not None and done.outcome.loss < 0.35  # ln 2 at first
    assert done.outcome.validation_loss is not None and done.outcome.validation_loss < 0.4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": "CartPole-v1"}, "language models talk with math, game"),
        ({"algorithm": "ppo", "ppo": {"n_epochs": 3}}, "write spec.language_ppo"),
        ({"environment": None}, "needs spec.environment"),
        ({"strategy": {"type": "fsdp2"}}, "set strategy.type: ddp"),
        ({"grpo": {"group_size": 5}}, "multiple of grpo.group_size"),
        ({"data": {"training_dataset": "/x"}}, "remove spec.data"),
    ],
)
def test_language_manifests_that_make_no_sense_say_what_to_change(
    change: dict[str, Any], said: str
) -> None:
    spec = {
        "algorithm": "grpo",
        "environment": "math",
        "model": {**TINY_MODEL, "fine_tuning_config": {"max_steps": 3, "batch_size": 16}},
        **change,
    }
    document = {
        "apiVersion": "loomos.ai/v1",
        "kind": "TrainingJob",
        "metadata": {"name": "x"},
        "spec": {k: v for k, v in spec.items() if v is not None},
    }
    found = ManifestValidator().validate(JobManifest.from_dict(document))
    assert not found.is_valid
    assert said in found.errors[0].message
