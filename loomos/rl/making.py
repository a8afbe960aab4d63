"""From what a manifest names to environments."""

from __future__ import annotations

from typing import Any

import gymnasium

from loomos.errors import InvalidInput
from loomos.manifest import EnvironmentChoice
from loomos.rl.environments import IDS, EnvironmentType
from loomos.rl.pool import Make


def environment_maker(choice: EnvironmentChoice) -> Make:
    """What makes copies of an environment.

    Raises:
        InvalidInput: there is none of this name, or its settings are not its.
    """
    settings: dict[str, Any] = dict(choice.config)
    name = choice.name
    if name in set(EnvironmentType):
        name, settings = IDS[EnvironmentType(name)], {"config": settings}

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make(name, disable_env_checker=True, **settings)

    try:
        made = make()
    except gymnasium.error.Error as error:
        raise InvalidInput(f"environment.name {choice.name!r}: {_said(error)}") from error
    except (ImportError, TypeError, ValueError) as error:
        raise InvalidInput(f"environment {choice.name!r}: {_said(error)}") from error
    made.close()
    return make


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
