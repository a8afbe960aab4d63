"""Averages of policies, and what they are worth.

Members of a campaign that share an environment start each round from the same parameters and end
it with different ones, since each has rewards and episodes of its own. The average of parameters
that were tuned from a common start trades their objectives by its weights ("rewarded soups", Ramé
et al. 2023, arXiv:2306.04488); with equal objectives it is federated averaging (McMahan et al.
2017, arXiv:1602.05629).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor

from loomos.jobs.campaigns import Appraisal, Blended, BlendRequest
from loomos.manifest import TrainingSpec, WeaveConfig
from loomos.rl.evaluation import play
from loomos.rl.making import environment_maker
from loomos.rl.normalizing import ObservationScale
from loomos.rl.policies import (
    average_weights,
    load_policy,
    make_agent,
    read_policy,
    save_policy,
)
from loomos.rl.pool import Make
from loomos.rl.threads import with_threads
from loomos.storage import open_store
from loomos.training.export import upload_version
from loomos.training.hosted import answer
from loomos.training.inputs import InputCache
from loomos.training.requests import AverageRequest
from loomos.training.resolve import pin_version


def run_blend(request_file: Path) -> int:
    """Average and appraise; write what comes of it where the request says."""
    request = AverageRequest.model_validate_json(request_file.read_text())
    return answer(request.result, lambda: {"blended": blend(request).model_dump(mode="json")})


def blend(request: AverageRequest) -> Blended:
    """Average the policies, publish the average, and play.

    Raises:
        InvalidModel: there is no such policy, or they are of different shapes.
        InvalidInput: there is no such environment.
    """
    torch.set_num_threads(1)
    work, store = request.work, open_store(request.storage)
    cache = InputCache(store, request.storage, request.scratch / "inputs")
    folders = [
        cache.folder(pin_version(f"model:{policy.version}", "policies", store))
        for policy in work.policies
    ]
    if len(folders) == 1:
        return Blended(
            version=work.policies[0].version,
            appraisal=appraise(folders[0], work.training, work.episodes),
        )
    weights, scale = _average(folders, work) if folders else _new(work.training)
    with tempfile.TemporaryDirectory(dir=request.scratch, prefix="blend-") as scratch:
        root = Path(scratch) / "policy"
        environment = work.training.environment
        assert environment is not None
        save_policy(root, weights, scale, work.training.acting, environment)
        (root / "README.md").write_text(_card(work))
        made = upload_version(
            store,
            root,
            name=work.name,
            source=work.blend_id,
            lineage={
                "job_id": work.blend_id,
                "policies": [policy.model_dump() for policy in work.policies],
            },
            is_draft=work.is_draft,
        )
        return Blended(
            version=f"{made.name}@{made.version}",
            appraisal=appraise(root, work.training, work.episodes),
        )


def appraise(folder: Path, training: TrainingSpec, episodes: int) -> Appraisal:
    """Play the same episodes as ever, of the likeliest actions."""
    assert training.environment is not None
    policy = load_policy(folder)
    settings = training.acting
    threads = settings.reward_threads if isinstance(settings, WeaveConfig) else []
    make: Make = environment_maker(training.environment)
    if threads:
        make = with_threads(make, threads)
    found = play(
        make, policy.agent, policy.scale, episodes=list(range(episodes)), seed=settings.seed
    )
    rewards = np.asarray([episode.rewards for episode in found])
    solved = [episode.is_solved for episode in found if episode.is_solved is not None]
    means = rewards.mean(axis=0)
    return Appraisal(
        episodes=len(found),
        mean_return=float(means.sum()),
        success_rate=sum(solved) / len(solved) if solved else None,
        threads={thread: float(mean) for thread, mean in zip(threads, means, strict=True)}
        if len(threads) > 1
        else {},
    )


def _new(training: TrainingSpec) -> tuple[dict[str, Tensor], Tensor | None]:
    """A policy that has learned nothing."""
    assert training.environment is not None
    made = environment_maker(training.environment)()
    size = int(gymnasium.spaces.flatdim(made.observation_space))
    agent = make_agent(training.acting, size, made.action_space)
    made.close()
    scale = None
    if training.acting.normalize_observations:
        scale = torch.from_numpy(ObservationScale(size).moments.state())
    return agent.state_dict(), scale


def _average(folders: list[Path], work: BlendRequest) -> tuple[dict[str, Tensor], None]:
    """Of policies that do not scale what they observe."""
    policies = [read_policy(folder).weights for folder in folders]
    return average_weights(policies, [policy.weight for policy in work.policies]), None


def _card(work: BlendRequest) -> str:
    """A card of few words, in the Hub's form."""
    environment = work.training.environment
    assert environment is not None
    rows = "\n".join(f"| `{policy.version}` | {policy.weight:.4f} |" for policy in work.policies)
    made_of = f"| policy | weight |\n|---|---|\n{rows}" if rows else "It has learned nothing yet."
    return f"""---
library_name: loomos
pipeline_tag: reinforcement-learning
tags: [loomos, {environment.name}]
---
# {work.name}

The average of policies by their parameters, made by `{work.blend_id}`. Load it with
`loomos.rl.load_policy`.

{made_of}
"""
