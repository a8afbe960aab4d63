"""Forty real trainings with pruning against random search at as many steps, over five seeds.

Both search learning rate, width, depth and batch size of a tiny language model. The search prunes;
random search trains whole until it has used as many optimizer steps. Goal: a better best loss.
"""

from __future__ import annotations

import statistics
from typing import Any

from loomos.client.http import LoomOSClient
from loomos.jobs.experiments import TrialRecord
from loomos.manifest import Experiment
from tests.stack import CORPUS, Stack

SEEDS = 5
TRIALS = 40
STEPS = 32


def document(name: str, seed: int, trials: int, **spec: Any) -> Experiment:
    """An experiment over trainings."""
    training = {
        "model": {
            "base_model": "init:llama",
            "tokenizer": "byte",
            "config": {
                "hidden_size": "{{ width }}",
                "intermediate_size": 64,
                "num_hidden_layers": "{{ layers }}",
                "num_attention_heads": 2,
            },
            "fine_tuning_config": {
                "learning_rate": "{{ rate }}",
                "warmup_steps": "{{ warmup }}",
                "max_steps": STEPS,
                "batch_size": 8,
                "sequence_length": 64,
                "evaluate_every": 4,
                "evaluate_sequences": 16,
            },
        },
        "data": {"training_dataset": str(CORPUS), "include": ["*.py"], "validation_split": 0.2},
        "runtime": {"checkpoint_interval": "10m"},
    }
    return Experiment.model_validate(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "Experiment",
            "metadata": {"name": name},
            "spec": {
                "objective": {"training": training},
                "parameters": {
                    "rate": {"type": "log_uniform", "min": 1e-5, "max": 1.0},
                    "width": {"type": "choice", "values": [16, 32, 64]},
                    "layers": {"type": "int_uniform", "min": 1, "max": 3},
                    "warmup": {"type": "int_uniform", "min": 0, "max": 16},
                },
                "trials": trials,
                "parallelism": 2,
                "seed": seed,
                **spec,
            },
        }
    )


async def run(client: LoomOSClient, experiment: Experiment) -> list[TrialRecord]:
    """Its trials, once it is over."""
    started = await client.experiments.start(experiment)
    trials = [trial async for trial in client.experiments.follow(started.experiment_id)]
    return sorted(trials, key=lambda trial: trial.number)


def steps(trial: TrialRecord) -> int:
    """Optimizer steps that a trial took."""
    return trial.reports[-1][0] if trial.reports else STEPS


async def measure(stack: Stack) -> dict[str, Any]:
    """Both searches for each seed."""
    ours, peers, pruned, used = [], [], [], []
    async with stack.client() as client:
        for seed in range(SEEDS):
            searched = await run(
                client,
                document(
                    "searched",
                    seed,
                    TRIALS,
                    sampler="tpe",
                    pruner={"name": "asha", "min_resource": 4, "reduction_factor": 2},
                ),
            )
            budget = sum(steps(trial) for trial in searched)
            drawn = await run(
                client, document("drawn", seed, round(budget / STEPS), sampler="random")
            )
            ours.append(min(trial.values[0] for trial in searched if trial.values))
            peers.append(min(trial.values[0] for trial in drawn if trial.values))
            pruned.append(sum(trial.state == "pruned" for trial in searched))
            used.append((budget, sum(steps(trial) for trial in drawn)))
    return {
        "best_loss": [round(value, 4) for value in ours],
        "random_best_loss": [round(value, 4) for value in peers],
        "better_in": sum(a < b for a, b in zip(ours, peers, strict=True)),
        "of": SEEDS,
        "pruned_of_40": pruned,
        "steps": used,
        "ratio": round(statistics.mean(ours) / statistics.mean(peers), 3),
    }
