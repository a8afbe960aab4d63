"""All families by name, each loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from loomos.manifest import EnvironmentType
from loomos.rl.environments.task import Family

_HOME = {
    EnvironmentType.MATH: "math.MathFamily",
    EnvironmentType.GAME: "game.GameFamily",
    EnvironmentType.TOOL_CALL: "tool_call.ToolCallFamily",
    EnvironmentType.CODE: "code.CodeFamily",
    EnvironmentType.LANGUAGE: "language.LanguageFamily",
    EnvironmentType.MULTIMODAL: "multimodal.MultimodalFamily",
}


class _Families(Mapping[EnvironmentType, type[Family[Any]]]):
    def __getitem__(self, name: EnvironmentType) -> type[Family[Any]]:
        module, _, family = _HOME[name].partition(".")
        found: type[Family[Any]] = getattr(
            import_module(f"loomos.rl.environments.{module}"), family
        )
        return found

    def __iter__(self) -> Iterator[EnvironmentType]:
        return iter(_HOME)

    def __len__(self) -> int:
        return len(_HOME)


FAMILIES = _Families()
