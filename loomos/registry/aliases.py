"""Aliases of a model: names such as `stable` that move from version to version."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from loomos.errors import Conflict, InvalidInput
from loomos.storage import Store
from loomos.storage.layout import aliases_prefix
from loomos.storage.register import Register

STABLE_ALIASES = ("stable", "canary", "previous")
"""Aliases that rollouts move."""

_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[0-9a-f]{8,64}")


class AliasState(BaseModel):
    """All aliases of a model, at one moment."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    aliases: dict[str, str] = {}
    """Version by alias."""
    moved_at: datetime | None = None
    """When this became so."""
    moved_by: str = ""
    """Workflow that moved it."""
    request: str = ""
    """What it was asked by; a retry of the same finds itself here."""


class Aliases:
    """Aliases of one model."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._register = Register(store, aliases_prefix(name))

    def read(self) -> AliasState:
        """The aliases now."""
        newest = self._register.read()
        return AliasState() if newest is None else AliasState.model_validate_json(newest.data)

    def history(self) -> list[AliasState]:
        """What was kept of how they moved, newest first."""
        return [
            AliasState.model_validate_json(self._register.get(number))
            for number in reversed(self._register.numbers())
        ]

    def move(
        self,
        changes: dict[str, str | None],
        *,
        by: str,
        request: str,
        expected: dict[str, str | None] | None = None,
    ) -> AliasState:
        """Point aliases at versions, all at once; None takes an alias away.

        When `stable` moves, `previous` is what it was. The same request twice changes once.

        Args:
            changes: version by alias.
            by: the workflow that asks.
            request: unique for this change.
            expected: versions that aliases must be at now; None for "not set".

        Raises:
            Conflict: an alias is not where it was expected.
            InvalidInput: an alias's name cannot be one.
        """
        for alias in changes:
            check_alias(alias)

        def moved(present: AliasState | None) -> AliasState:
            state = present or AliasState()
            if state.request == request:
                return state
            for alias, version in (expected or {}).items():
                at = state.aliases.get(alias)
                if at != version:
                    raise Conflict(
                        f"{self.name}@{alias} is at {at or 'nothing'}, not at "
                        f"{version or 'nothing'}; look again"
                    )
            wanted: dict[str, str | None] = {**state.aliases, **changes}
            was = state.aliases.get("stable")
            if was and wanted.get("stable") not in (None, was) and "previous" not in changes:
                wanted["previous"] = was
            return AliasState(
                aliases={alias: version for alias, version in wanted.items() if version},
                moved_at=datetime.now(UTC),
                moved_by=by,
                request=request,
            )

        return self._register.change(AliasState, moved)


def check_alias(alias: str) -> None:
    """Raise `InvalidInput` unless this may be an alias."""
    if not _ALIAS.fullmatch(alias) or _VERSION.fullmatch(alias):
        raise InvalidInput(
            f"alias: {alias!r} cannot be one; begin with a letter, then letters, digits, . _ -, "
            "and nothing that reads as a version"
        )
