"""WEAVE by the names that programs know."""

from __future__ import annotations

from loomos.manifest import ExplorationStrategy, RewardThread
from loomos.rl.weave.algorithm import WeaveAlgorithm, create_weave_algorithm

__all__ = ["ExplorationStrategy", "RewardThread", "WeaveAlgorithm", "create_weave_algorithm"]
