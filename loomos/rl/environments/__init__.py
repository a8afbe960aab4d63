"""Six families of tasks, for policy networks and for language models."""

from __future__ import annotations

import gymnasium

from loomos.manifest import EnvironmentType
from loomos.rl.environments.environment import EnvironmentInfo, FamilyEnvironment, LoomEnvironment

__all__ = ["EnvironmentInfo", "EnvironmentType", "FamilyEnvironment", "LoomEnvironment"]

IDS = {
    name: "loomos/" + "".join(word.capitalize() for word in name.split("_")) + "-v0"
    for name in EnvironmentType
}
"""Gymnasium's id of each family, such as `loomos/ToolCall-v0`."""

for _name, _id in IDS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(
            id=_id,
            entry_point="loomos.rl.environments.environment:FamilyEnvironment",
            kwargs={"family": str(_name)},
        )

if "loomos/DeepSea-v0" not in gymnasium.registry:
    gymnasium.register(
        id="loomos/DeepSea-v0", entry_point="loomos.rl.environments.deep_sea:DeepSea"
    )
    gymnasium.register(
        id="loomos/DeepSeaTreasure-v0",
        entry_point="loomos.rl.environments.deep_sea_treasure:DeepSeaTreasure",
        max_episode_steps=100,
    )
