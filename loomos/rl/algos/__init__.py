"""WEAVE by the names that programs know."""

from __future__ import annotations

from loomos.manifest import ExplorationStrategy, RewardThread
from loomos.rl.weave.algorithm import WeaveAlgorithm, create_weave_algorithm
from loomos.rl.weave.apollo import ApolloTrainer, create_apollo_weave_trainer
from loomos.rl.weave.trainers import WeaveGymTrainer, create_weave_gym_trainer

__all__ = [
    "ApolloTrainer",
    "ExplorationStrategy",
    "RewardThread",
    "WeaveAlgorithm",
    "WeaveGymTrainer",
    "create_apollo_weave_trainer",
    "create_weave_algorithm",
    "create_weave_gym_trainer",
]
