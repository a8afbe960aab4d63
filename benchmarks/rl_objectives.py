"""WEAVE beside PPO on two objectives: which trades of the deep sea treasure each finds.

Each variant makes as many policies as there are preferences, with equal steps, settings and seeds;
what counts is the hypervolume that their likeliest actions' returns cover (reference point: no
treasure, 25 steps), relative to that of the ten best trades, which are known. PPO maximises a
weighted sum of the objectives, scaled to their ranges; so does WEAVE `linear`; `chebyshev` moves
weight to what falls behind; `utility` maximises the augmented Chebyshev utility of each episode;
`lagrangian` takes the most treasure within an allowance of steps.
Means and 95 % bootstrap intervals over seeds. Draws `RL_PLOT` (a PNG) if that is set; `RL_SEEDS`
does less.
"""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.rl_weave import interval
from loomos.manifest import EnvironmentChoice, PPOConfig, WeaveConfig
from loomos.rl.environments.deep_sea_treasure import FRONT
from loomos.rl.evaluation import play
from loomos.rl.making import environment_maker
from loomos.rl.pool import EnvironmentPool, Make
from loomos.rl.ppo import PPO
from loomos.rl.practice import Practice

NEEDS_STACK = False
SEEDS = 5
STEPS = 60_000
REFERENCE = (0.0, -25.0)
RANGES = (124.0, 19.0)
PREFERENCES = (0.15, 0.3, 0.4, 0.55, 0.7, 0.9, 0.99)
"""Weight of the treasure; the rest is that of time."""
ALLOWANCES = (-1.5, -4.0, -7.5, -9.5, -13.5, -17.5, -19.5)
"""Of time, for `lagrangian`."""

COMMON: dict[str, Any] = {
    "total_timesteps": STEPS,
    "n_environments": 16,
    "batch_size": 1024,
    "minibatch_size": 256,
    "n_epochs": 4,
    "learning_rate": 1e-3,
    "entropy_coef": 0.01,
    "gamma": 1.0,
}
THREADS = ["task_completion", "efficiency"]
VARIANTS: dict[str, dict[str, Any] | None] = {
    "PPO, weighted sum": None,
    "WEAVE, utility": {
        "critics": 1,
        "scalarization": "utility",
        "ideal": [124.0, -1.0],
        "worst": [0.0, -25.0],
    },
    "WEAVE, linear": {"critics": 1},
    "WEAVE, chebyshev": {"critics": 1, "scalarization": "chebyshev"},
    "WEAVE, lagrangian": {"critics": 1, "scalarization": "lagrangian"},
}
"""What differs; None is PPO itself."""


class WeightedSum(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One reward of two, each scaled to its range."""

    def __init__(self, environment: gymnasium.Env[Any, Any], weights: tuple[float, float]) -> None:
        super().__init__(environment)
        self._weights = np.asarray(weights) / RANGES

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See base class."""
        seen, rewards, over, cut, info = self.env.step(action)
        return seen, float(np.asarray(rewards) @ self._weights), over, cut, info


def learn(make: Make, config: PPOConfig) -> PPO:
    """A policy after all steps."""
    pool = EnvironmentPool(make, range(config.n_environments), seed=config.seed)
    practice = Practice(pool, config)
    practice.collector.reset()
    for update in range(config.updates):
        practice.update(update)
    pool.close()
    return practice.learner


def found_by(variant: dict[str, Any] | None, number: int, seed: int) -> tuple[float, float]:
    """(treasure, minus steps) of the likeliest actions after learning for a preference."""
    make = environment_maker(EnvironmentChoice(name="loomos/DeepSeaTreasure-v0"))
    treasure = PREFERENCES[number]
    if variant is None:

        def one() -> gymnasium.Env[Any, Any]:
            return WeightedSum(make(), (treasure, 1 - treasure))

        learner = learn(one, PPOConfig(**COMMON, seed=seed))
    else:
        more: dict[str, Any] = {"thread_weights": [treasure, 1 - treasure]}
        if variant.get("scalarization") == "lagrangian":
            more = {"thresholds": [ALLOWANCES[number]]}
        config = WeaveConfig(**COMMON, seed=seed, reward_threads=THREADS, **variant, **more)
        learner = learn(make, config)
    (episode,) = play(make, learner.agent, None, episodes=[0], seed=0)
    return episode.rewards[0], episode.rewards[1]


def hypervolume(points: list[tuple[float, float]]) -> float:
    """Area that the points dominate above the reference point."""
    area, height = 0.0, REFERENCE[1]
    for treasure, steps in sorted(set(points), reverse=True):
        if steps > height:
            area += max(0.0, treasure - REFERENCE[0]) * (steps - height)
            height = steps
    return area


def draw(result: dict[str, Any], path: str) -> None:
    """Every trade that was found, by variant, beside the best ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(result), figsize=(3 * len(result), 3.2), sharey=True)
    for place, (name, row) in zip(axes, result.items(), strict=True):
        best = np.asarray(FRONT)
        place.plot(-best[:, 1], best[:, 0], "o", color="0.8", markersize=9)
        points = np.asarray(row["points"])
        place.plot(-points[:, 1], points[:, 0], "x")
        place.set(title=f"{name}\n{row['hypervolume']['iqm']:.0f} %", xlabel="steps", xlim=(0, 26))
    axes[0].set_ylabel("treasure")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


async def measure(stack: None) -> dict[str, Any]:
    """All variants, preferences and seeds."""
    torch.set_num_threads(1)
    seeds = range(int(os.environ.get("RL_SEEDS", SEEDS)))
    whole = hypervolume(FRONT)
    result: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        began = time.process_time()
        runs = [[found_by(variant, n, seed) for n in range(len(PREFERENCES))] for seed in seeds]
        shares = [100 * hypervolume(points) / whole for points in runs]
        trades = [len(set(points) & set(FRONT)) for points in runs]
        result[name] = {
            "hypervolume": interval(shares),
            "best_trades": f"{np.mean(trades):.1f} of {len(PREFERENCES)} policies",
            "cpu_s": round((time.process_time() - began) / len(seeds) / len(PREFERENCES), 1),
            "points": [point for points in runs for point in points],
        }
        print(name, {k: v for k, v in result[name].items() if k != "points"}, flush=True)
    if path := os.environ.get("RL_PLOT"):
        draw(result, path)
    return result
