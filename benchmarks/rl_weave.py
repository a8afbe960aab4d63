"""WEAVE beside PPO, and each part of it alone, where rewards are sparse and tasks of growing size.

DeepSea has one path that pays. A frozen lake of random holes, without slipping, pays at the far
corner only. Equal steps, equal settings but for what is named, the same seeds; a seed has a map of
its own. A run has solved a task when 180 of 200 episodes in a row were paid; the figure is the
thousands of steps that this took, or all that there were. Means are interquartile means with 95 %
bootstrap intervals over seeds (Agarwal et al. 2021, arXiv:2108.13264). Draws `RL_PLOT` (a PNG) if
that is set. `RL_SEEDS` and `RL_TASKS` (such as `DeepSea 14,lake 8`) do less.
"""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.envs.toy_text.frozen_lake import generate_random_map
from scipy import stats

from loomos.manifest import EnvironmentChoice, PPOConfig, WeaveConfig
from loomos.rl.making import environment_maker
from loomos.rl.pool import EnvironmentPool
from loomos.rl.practice import Practice

NEEDS_STACK = False
SEEDS = 5
COPIES = 32
WINDOW, NEEDED = 200, 180

VARIANTS: dict[str, dict[str, Any] | None] = {
    "PPO": None,
    "WEAVE, counts": {"critics": 1},
    "WEAVE, novelty": {"critics": 1, "exploration_strategies": ["curiosity_driven"]},
    "WEAVE, no bonus": {"heads": 3, "critics": 3, "exploration_strategies": []},
    "WEAVE, all": {
        "critics": 3,
        "exploration_strategies": ["entropy_based", "curiosity_driven", "ucb_exploration"],
    },
}
"""What differs from PPO; None is PPO itself."""


class Task(NamedTuple):
    """A kind of task, of some size."""

    kind: str
    size: int

    @property
    def steps(self) -> int:
        """That a run may take."""
        return self.size * 6400 if self.kind == "DeepSea" else 200_000

    def environment(self, seed: int) -> EnvironmentChoice:
        """Its map for a seed."""
        if self.kind == "DeepSea":
            config: dict[str, Any] = {"size": self.size, "mapping_seed": seed}
            return EnvironmentChoice(name="loomos/DeepSea-v0", config=config)
        if self.kind != "lake":
            raise ValueError(f"RL_TASKS: no {self.kind!r}; there are DeepSea and lake")
        config = {
            "desc": generate_random_map(self.size, seed=seed),
            "is_slippery": False,
            "max_episode_steps": 4 * self.size,
        }
        return EnvironmentChoice(name="FrozenLake-v1", config=config)


TASKS = ("DeepSea 10", "DeepSea 14", "DeepSea 20", "DeepSea 26", "lake 8", "lake 10", "lake 12")


def run(task: Task, variant: dict[str, Any] | None, seed: int) -> tuple[int | None, float]:
    """Steps until it was solved, if it was, and processor seconds."""
    batch = task.size * COPIES * 4
    settings: dict[str, Any] = {
        "total_timesteps": task.steps,
        "n_environments": COPIES,
        "batch_size": batch,
        "minibatch_size": batch // 8,
        "n_epochs": 4,
        "learning_rate": 1e-3,
        "entropy_coef": 0.01,
        "seed": seed,
    }
    pool = EnvironmentPool(environment_maker(task.environment(seed)), range(COPIES), seed=seed)
    config = PPOConfig(**settings) if variant is None else WeaveConfig(**settings, **variant)
    practice = Practice(pool, config)
    practice.collector.reset()
    won: list[bool] = []
    solved_at = None
    began = time.process_time()
    for update in range(config.updates):
        _, episodes = practice.update(update)
        won += [found > 0.5 for found in episodes.returns]
        if solved_at is None and _is_solved(won, len(episodes.returns)):
            solved_at = (update + 1) * batch
    return solved_at, time.process_time() - began


def _is_solved(won: list[bool], newest: int) -> bool:
    """Whether the last windows that end among the newest episodes hold one with enough paid."""
    sums = np.convolve(won[-(WINDOW + newest) :], np.ones(WINDOW), "valid")
    return len(won) >= WINDOW and bool(sums.max() >= NEEDED)


def interval(values: list[float]) -> dict[str, float]:
    """Interquartile mean, and its 95 % bootstrap interval."""

    def iqm(sample: Any, axis: int) -> Any:
        return stats.trim_mean(sample, 0.25, axis=axis)

    found = np.asarray(values)
    middle = float(iqm(found, 0))
    if len(set(values)) == 1:
        return {"iqm": round(middle), "low": round(middle), "high": round(middle)}
    bootstrap = stats.bootstrap(
        (found,), iqm, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = bootstrap.confidence_interval
    return {"iqm": round(middle), "low": round(float(low)), "high": round(float(high))}


def draw(result: dict[str, Any], path: str) -> None:
    """Steps to solve by size, with intervals: a panel for each kind of task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [Task(kind, int(size)) for kind, size in map(str.split, next(iter(result.values())))]
    kinds = list(dict.fromkeys(task.kind for task in tasks))
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(6 * len(kinds), 4.5), squeeze=False)
    for axes, kind in zip(panels[0], kinds, strict=True):
        sizes = [task.size for task in tasks if task.kind == kind]
        for name, rows in result.items():
            found = [rows[f"{kind} {size}"]["steps_k"] for size in sizes]
            middle = [of["iqm"] for of in found]
            below = [of["iqm"] - of["low"] for of in found]
            above = [of["high"] - of["iqm"] for of in found]
            axes.errorbar(sizes, middle, yerr=[below, above], marker="o", capsize=3, label=name)
        most = [Task(kind, size).steps / 1000 for size in sizes]
        axes.plot(sizes, most, color="0.5", linestyle="--", label="never", zorder=9)
        axes.set_xticks(sizes)
        axes.set(title=kind, xlabel="size", ylabel="thousand steps until solved", ylim=(0, None))
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


async def measure(stack: None) -> dict[str, Any]:
    """All variants, tasks and seeds."""
    torch.set_num_threads(1)
    tasks = os.environ.get("RL_TASKS", ",".join(TASKS)).split(",")
    seeds = range(int(os.environ.get("RL_SEEDS", SEEDS)))
    result: dict[str, Any] = {name: {} for name in VARIANTS}
    for label in tasks:
        kind, size = label.split()
        task = Task(kind, int(size))
        for name, variant in VARIANTS.items():
            rows = [run(task, variant, seed) for seed in seeds]
            result[name][label] = {
                "solved": f"{sum(solved is not None for solved, _ in rows)} of {len(rows)}",
                "steps_k": interval([(solved or task.steps) / 1000 for solved, _ in rows]),
                "cpu_s": round(float(np.median([took_s for _, took_s in rows])), 1),
            }
            print(label, name, result[name][label], flush=True)
    if path := os.environ.get("RL_PLOT"):
        draw(result, path)
    return result
