"""Policies that learn, by real ranks: exact resume, and what they publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activities.rank_host import RankHost
from loomos.jobs.training import CheckpointRef
from loomos.manifest import TrainingSpec
from tests.gangs import Lab

MakeLab = Callable[..., Lab]


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
    ],
)
async def test_a_killed_policy_resumes_to_the_same_bits(
    policy_lab: MakeLab, environment: str, changes: dict[str, Any], nodes: int, ranks: int
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
