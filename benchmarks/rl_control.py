"""PPO beside Stable-Baselines3: what policies get in the end, and how fast they learn.

Both learn for as many steps in the environment, five seeds each, in turn on one core. Theirs has
the settings of rl-baselines3-zoo (`hyperparams/ppo.yml`), ours its own. Returns are means of 100
episodes, the same for both, of the likeliest action. Goals: a mean return at least theirs; 1.5
times their steps a second on CartPole with our settings, better three times; with their settings
both are shown too.

Environment variables: `RL_ENVIRONMENTS` (names, with commas) and `RL_SEEDS` (a number) do less.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from statistics import mean, median, stdev
from typing import Any

import gymnasium
import numpy as np
import torch

from loomos.manifest import PPOConfig
from loomos.rl import EnvironmentChoice, PPOTrainer
from loomos.rl.evaluation import EVALUATION_COPIES, returns
from loomos.rl.making import environment_maker
from loomos.rl.pool import episode_seed

NEEDS_STACK = False
SEEDS = 5
EPISODES = 100

TIMESTEPS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 1_000_000,
    "Pendulum-v1": 100_000,
    "LunarLander-v3": 1_000_000,
}

OURS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "n_environments": 32,
        "batch_size": 1024,
        "minibatch_size": 256,
        "n_epochs": 6,
        "learning_rate": 2e-3,
        "anneal_learning_rate": True,
        "gamma": 0.98,
        "gae_lambda": 0.9,
    },
    "Acrobot-v1": {
        "n_environments": 16,
        "batch_size": 4096,
        "minibatch_size": 64,
        "n_epochs": 4,
        "learning_rate": 3e-4,
        "gae_lambda": 0.94,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "Pendulum-v1": {
        "n_environments": 4,
        "batch_size": 1024,
        "minibatch_size": 64,
        "n_epochs": 10,
        "learning_rate": 1e-3,
        "anneal_learning_rate": True,
        "gamma": 0.95,
        "gae_lambda": 0.95,
        "normalize_rewards": True,
    },
    "LunarLander-v3": {
        "n_environments": 16,
        "batch_size": 8192,
        "minibatch_size": 256,
        "n_epochs": 6,
        "learning_rate": 1e-3,
        "anneal_learning_rate": True,
        "gamma": 0.999,
        "gae_lambda": 0.98,
        "entropy_coef": 0.01,
        "normalize_rewards": True,
    },
}
"""Our settings."""

THEIRS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": lambda left: 0.001 * left,
        "clip_range": lambda left: 0.2 * left,
    },
    "Acrobot-v1": {
        "n_envs": 16,
        "normalize": True,
        "n_steps": 256,
        "gae_lambda": 0.94,
        "gamma": 0.99,
        "n_epochs": 4,
        "ent_coef": 0.0,
    },
    "Pendulum-v1": {
        "n_envs": 4,
        "n_steps": 1024,
        "gae_lambda": 0.95,
        "gamma": 0.9,
        "n_epochs": 10,
        "ent_coef": 0.0,
        "learning_rate": 1e-3,
        "clip_range": 0.2,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "LunarLander-v3": {
        "n_envs": 16,
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
}
"""rl-baselines3-zoo's settings."""

SAME = PPOConfig(
    n_environments=8,
    batch_size=256,
    minibatch_size=256,
    n_epochs=20,
    learning_rate=1e-3,
    anneal_learning_rate=True,
    anneal_clip=True,
    gamma=0.98,
    gae_lambda=0.8,
)
"""The zoo's settings for CartPole, as ours."""


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the processor time that it took."""
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def ours(name: str, config: PPOConfig) -> tuple[float, float]:
    """Mean return, and steps a second."""
    policy, took_s = timed(lambda: PPOTrainer(config).train(name))
    make = environment_maker(EnvironmentChoice(name=name))
    episodes = list(range(EPISODES))
    found = returns(make, policy.agent, policy.scale, episodes=episodes, seed=config.seed + 1000)
    return mean(found), config.updates * config.batch_size / took_s


def theirs(name: str, seed: int, timesteps: int) -> tuple[float, float]:
    """Likewise of Stable-Baselines3."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    settings = dict(THEIRS[name])
    environment: Any = make_vec_env(name, settings.pop("n_envs"), seed=seed)
    is_scaled = settings.pop("normalize", False)
    if is_scaled:
        environment = VecNormalize(environment, gamma=settings["gamma"])
    model = PPO("MlpPolicy", environment, seed=seed, device="cpu", **settings)
    _, took_s = timed(lambda: model.learn(timesteps))
    single = gymnasium.make(name)
    found = []
    for episode in range(EPISODES):
        first = episode_seed(seed + 1000, EVALUATION_COPIES + episode, 0)
        seen, _ = single.reset(seed=first)
        total, over = 0.0, False
        while not over:
            scaled = environment.normalize_obs(seen[None])[0] if is_scaled else seen
            action, _ = model.predict(scaled, deterministic=True)
            seen, reward, ended, cut, _ = single.step(action)
            total, over = total + float(reward), ended or cut
        found.append(total)
    return mean(found), model.num_timesteps / took_s


async def measure(stack: None) -> dict[str, Any]:
    """All environments, or those asked for."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = os.environ.get("RL_ENVIRONMENTS", ",".join(TIMESTEPS)).split(",")
    seeds = range(int(os.environ.get("RL_SEEDS", SEEDS)))
    result: dict[str, Any] = {"gymnasium": gymnasium.__version__, "seeds": len(seeds)}
    for name in names:
        steps = TIMESTEPS[name]
        rows: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        for seed in seeds:
            config = PPOConfig(total_timesteps=steps, seed=seed, **OURS[name])
            rows["ours"].append(ours(name, config))
            rows["theirs"].append(theirs(name, seed, steps))
            print(name, seed, rows["ours"][-1], rows["theirs"][-1], flush=True)
        result[name] = {
            who: {
                "return": round(mean(found for found, _ in of), 1),
                "deviation": round(stdev(found for found, _ in of), 1) if len(of) > 1 else None,
                "worst": round(min(found for found, _ in of), 1),
                "steps_per_cpu_s": round(median(rate for _, rate in of)),
            }
            for who, of in rows.items()
        }
        rates = [mine[1] / other[1] for mine, other in zip(*rows.values(), strict=True)]
        result[name]["speed_ratio"] = round(float(np.median(rates)), 2)
        if name == "CartPole-v1":
            config = SAME.model_copy(update={"total_timesteps": steps})
            found, rate = ours(name, config)
            result[name]["their_settings"] = {
                "return": round(found, 1),
                "speed_ratio": round(rate / median(r for _, r in rows["theirs"]), 2),
            }
    return result
