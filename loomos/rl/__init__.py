"""Reinforcement learning: environments, PPO, and the policies that come of it.

Names are imported when first used; most of them need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomos._lazy import lazy

if TYPE_CHECKING:
    from loomos.manifest import EnvironmentChoice, PPOConfig
    from loomos.rl.environments import EnvironmentType, LoomEnvironment
    from loomos.rl.gym import LoomRLGym
    from loomos.rl.integration import IntegratedRLSystem, create_integrated_rl_system
    from loomos.rl.policies import Policy, load_policy
    from loomos.rl.trainer import PPOTrainer, Trajectories, collect_trajectories
    from loomos.rl.weave.algorithm import WeaveAlgorithm, create_weave_algorithm

__all__ = [
    "EnvironmentChoice",
    "EnvironmentType",
    "IntegratedRLSystem",
    "LoomEnvironment",
    "LoomRLGym",
    "PPOConfig",
    "PPOTrainer",
    "Policy",
    "Trajectories",
    "WeaveAlgorithm",
    "collect_trajectories",
    "create_integrated_rl_system",
    "create_weave_algorithm",
    "load_policy",
]

__getattr__ = lazy(
    __name__,
    {
        "EnvironmentChoice": "loomos.manifest",
        "EnvironmentType": "loomos.rl.environments",
        "LoomEnvironment": "loomos.rl.environments",
        "LoomRLGym": "loomos.rl.gym",
        "PPOConfig": "loomos.manifest",
        "PPOTrainer": "loomos.rl.trainer",
        "Policy": "loomos.rl.policies",
        "Trajectories": "loomos.rl.trainer",
        "IntegratedRLSystem": "loomos.rl.integration",
        "create_integrated_rl_system": "loomos.rl.integration",
        "collect_trajectories": "loomos.rl.trainer",
        "WeaveAlgorithm": "loomos.rl.weave.algorithm",
        "create_weave_algorithm": "loomos.rl.weave.algorithm",
        "load_policy": "loomos.rl.policies",
    },
)
