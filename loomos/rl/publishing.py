"""From a checkpoint to a policy's files and its card."""

from __future__ import annotations

from pathlib import Path

from loomos.jobs.training import CheckpointRef, PublishRequest
from loomos.rl.policies import SCALE, save_policy
from loomos.storage import Store
from loomos.training.shards import own_prefix, read_tensors


def write_policy(job: PublishRequest, store: Store, folder: Path, root: Path) -> None:
    """Write the policy of a finished job.

    Raises:
        CheckpointCorrupt: its last checkpoint is damaged.
    """
    assert job.spec.environment is not None
    ref = CheckpointRef(generation=job.generation, step=job.step)
    tensors = read_tensors(store, job.job_id, ref, folder / "checkpoint")
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    scale = tensors.get(own_prefix(0) + SCALE)
    save_policy(root, weights, scale, job.spec.acting, job.spec.environment)
    (root / "README.md").write_text(_card(job))


def _card(job: PublishRequest) -> str:
    """The model card (Mitchell et al. 2019, arXiv:1810.03993), in the Hub's form."""
    spec, outcome, environment = job.spec, job.outcome, job.spec.environment
    assert environment is not None

    def number(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.2f}"

    evaluated = None if outcome.validation_loss is None else -outcome.validation_loss
    return f"""---
library_name: loomos
pipeline_tag: reinforcement-learning
tags: [loomos, {environment.name}]
---
# {job.name}

Trained by LoomOS {job.inputs.code}, job `{job.job_id}`. Load it with `loomos.rl.load_policy`.

| what | value |
|---|---|
| algorithm | {spec.algorithm} |
| environment | `{environment.name}` (settings sha256 `{job.inputs.training.sha256}`) |
| updates | {outcome.step} of {outcome.total_steps}, ended by {outcome.reason} |
| environment steps | {outcome.step * spec.work_per_step} |
| mean return, newest training episodes | {number(outcome.episode_return)} |
| mean return, {spec.acting.evaluate_episodes} episodes of likeliest actions | {number(evaluated)} |
| seed | {spec.acting.seed} |

Returns are undiscounted sums of rewards. Nothing else about this policy has been evaluated.
"""
