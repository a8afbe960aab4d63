"""WEAVE beside PPO, and each part of it alone, where rewards are sparse: DeepSea of growing size.

Equal steps, equal settings but for what is named, the same seeds. A run has solved a size when 180
of 200 episodes in a row found the treasure; the figure is the episodes that this took, or all that
there were. Means are interquartile means with 95 % bootstrap intervals over seeds (Agarwal et al.
2021, arXiv:2108.13264). Draws `RL_PLOT` (a PNG) if that is set. `RL_SEEDS`, `RL_SIZES` do less.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from scipy import stats

from loomos.manifest import EnvironmentChoice, PPOConfig, WeaveConfig
from loomos.rl.making import environment_maker
from loomos.rl.pool import EnvironmentPool
from loomos.rl.practice import Practice

NEEDS_STACK = False
SIZES = (10, 14, 20, 26)
SEEDS = 5
EPISODES = 6400
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


def run(size: int, variant: dict[str, Any] | None, seed: int) -> tuple[int | None, int, float]:
    """Episodes until it was solved, episodes with treasure, and processor seconds."""
    batch = size * COPIES * 4
    settings: dict[str, Any] = {
        "total_timesteps": size * EPISODES,
        "n_environments": COPIES,
        "batch_size": batch,
        "minibatch_size": batch // 8,
        "n_epochs": 4,
        "learning_rate": 1e-3,
        "entropy_coef": 0.01,
        "seed": seed,
    }
    make = environment_maker(
        EnvironmentChoice(name="loomos/DeepSea-v0", config={"size": size, "mapping_seed": seed})
    )
    pool = EnvironmentPool(make, range(COPIES), seed=seed)
    config = PPOConfig(**settings) if variant is None else WeaveConfig(**settings, **variant)
    practice = Practice(pool, config)
    practice.collector.reset()
    won: list[bool] = []
    began = time.process_time()
    for update in range(config.updates):
        _, episodes = practice.update(update)
        won += [found > 0.5 for found in episodes.returns]
    took_s = time.process_time() - began
    sums = np.convolve(won, np.ones(WINDOW), "valid")
    solved = np.flatnonzero(sums >= NEEDED)
    return (int(solved[0]) + WINDOW if len(solved) else None), sum(won), took_s


def interval(values: list[float]) -> dict[str, float]:
    """Interquartile mean, and its 95 % bootstrap interval."""

    def iqm(sample: Any, axis: int) -> Any:
        return stats.trim_mean(sample, 0.25, axis=axis)

    found = np.asarray(values)
    middle = float(iqm(found, 0))
    if len(set(values)) == 1:
        return {"iqm": middle, "low": middle, "high": middle}
    bootstrap = stats.bootstrap(
        (found,), iqm, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = bootstrap.confidence_interval
    return {"iqm": round(middle), "low": round(float(low)), "high": round(float(high))}


def draw(result: dict[str, Any], path: str) -> None:
    """Episodes to solve by size, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, rows in result.items():
        sizes = [int(size) for size in rows]
        found = [rows[size]["episodes"] for size in rows]
        middle = [of["iqm"] for of in found]
        below = [of["iqm"] - of["low"] for of in found]
        above = [of["high"] - of["iqm"] for of in found]
        axes.errorbar(sizes, middle, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.axhline(EPISODES, color="0.5", linestyle="--", label="never")
    axes.set(title="DeepSea", xlabel="size", ylabel="episodes until solved", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


async def measure(stack: None) -> dict[str, Any]:
    """All variants, sizes and seeds."""
    torch.set_num_threads(1)
    sizes = [int(n) for n in os.environ.get("RL_SIZES", ",".join(map(str, SIZES))).split(",")]
    seeds = range(int(os.environ.get("RL_SEEDS", SEEDS)))
    result: dict[str, Any] = {name: {} for name in VARIANTS}
    for size in sizes:
        for name, variant in VARIANTS.items():
            rows = [run(size, variant, seed) for seed in seeds]
            result[name][str(size)] = {
                "solved": f"{sum(solved is not None for solved, _, _ in rows)} of {len(rows)}",
                "episodes": interval([float(solved or EPISODES) for solved, _, _ in rows]),
                "cpu_s": round(float(np.median([took_s for _, _, took_s in rows])), 1),
            }
            print(size, name, result[name][str(size)], flush=True)
    if path := os.environ.get("RL_PLOT"):
        draw(result, path)
    return result
