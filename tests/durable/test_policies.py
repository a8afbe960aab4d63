"""Policies that learn, by real ranks: exact resume, and what they publish."""

from __future__ import annotations

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
from tests.gangs import Lab
from tests.stack import Stack

MakeLab = Callable[..., Lab]

EXAMPLES = Path(__file__).parents[2] / "examples" / "rl"


def read_yaml(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


@pytest.fixture
def policy_lab(tmp_path: Path, rank_host: RankHost) -> MakeLab:
    def make(environment: Any = "CartPole-v1", **changes: Any) -> Lab:
        ppo = {
            "total_timesteps": 30 * 256,
            "batch_size": 256,
            "n_epochs": 2,
            "evaluate_episodes": 2,
            "evaluate_every": 30,
            **changes,
        }
        spec = {
            "algorithm": "ppo",
            "environment": environment,
            "ppo": ppo,
            "runtime": {"checkpoint_steps": 10, "checkpoint_interval": "1h"},
        }
        return Lab(tmp_path, rank_host, TrainingSpec.model_validate(spec))

    return make


@pytest.mark.parametrize(
    ("environment", "changes", "nodes", "ranks"),
    [
        pytest.param("CartPole-v1", {}, 1, 1, id="discrete"),
        pytest.param("CartPole-v1", {}, 2, 1, id="two nodes"),
        pytest.param(
            "Pendulum-v1",
            {"normalize_observations": True, "normalize_rewards": True, "anneal_clip": True},
            1,
            1,
            id="continuous, scaled",
        ),
        pytest.param("LunarLander-v3", {"target_kl": 0.01}, 1, 1, id="Box2D"),
        pytest.param(
            {
                "name": "math",
                "config": {"max_steps": 6, "curriculum": {"success_threshold": 0.01, "window": 5}},
            },
            {},
            1,
            1,
            id="math with a curriculum",
        ),
    ],
)
async def test_a_killed_policy_resumes_to_the_same_bits(
    policy_lab: MakeLab, environment: Any, changes: dict[str, Any], nodes: int, ranks: int
) -> None:
    undisturbed, disturbed = policy_lab(environment, **changes), policy_lab(environment, **changes)
    whole = await undisturbed.run(nodes, ranks)

    killed = await disturbed.run(nodes, ranks, at_step=17)
    resumed = await disturbed.run(nodes, ranks)

    assert killed.codes == [-9] * nodes
    assert resumed.outcome.resumed_from == CheckpointRef(generation=1, step=10)
    assert resumed.outcome.step == 30
    assert disturbed.weights(resumed.outcome.checkpoint) == undisturbed.weights(
        whole.outcome.checkpoint
    )
    assert resumed.outcome.episode_return == whole.outcome.episode_return
    assert resumed.outcome.validation_loss == whole.outcome.validation_loss


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
        ({"model": {"base_model": "init:llama", "tokenizer": "byte"}}, "remove spec.model"),
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


async def test_an_environment_that_is_not_there_fails_the_job_at_once(
    policy_lab: MakeLab,
) -> None:
    attempt = await policy_lab("CartPole-v77").run(1, 1)
    assert attempt.failures[0]["type"] == "InvalidInput"
    assert "CartPole-v77" in attempt.failures[0]["message"]
