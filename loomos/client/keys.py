"""Idempotency keys: which run a key of a person stands for, in the store, by compare-and-set.

A key is taken before its run is started and let go before the run is forgotten. Its next use is
another run with another id, so nothing of the first, not even a late writer, gets into it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from loomos.errors import Conflict
from loomos.jobs.message import Message
from loomos.jobs.names import is_identifier, new_identifier, short_digest
from loomos.storage import Store
from loomos.storage.layout import keys_prefix
from loomos.storage.register import Register

STARTING = timedelta(hours=1)
"""A run that was to be started longer ago, and that Temporal does not know, has been forgotten."""


class KeyUse(Message):
    """What a key stands for."""

    uses: int = 0
    """Counts the runs that the key stood for before this one."""
    run_id: str
    """Workflow id."""
    sha256: str
    """Digest of the document."""
    taken_at: datetime
    """When."""
    is_free: bool = False
    """The run was deleted."""


class Keys:
    """The keys of one kind of document.

    Args:
        store: where they are.
        kind: for example `TrainingJob`.
    """

    def __init__(self, store: Store, kind: str) -> None:
        self._store, self._kind = store, kind

    def name(self, owner: str, key: str) -> str:
        """Names a key of a person in the store and in memos; not the key itself."""
        return short_digest(self._kind, owner, key)

    async def take(self, owner: str, key: str | None, name: str, sha256: str) -> KeyUse:
        """Let a key stand for a run of this document; it may do so already.

        Args:
            owner: whose key.
            key: the key; None for a run that nobody asks for twice.
            name: from the document; ids begin with it.
            sha256: digest of the document.

        Raises:
            Conflict: it stands for another document.
        """
        now = datetime.now(UTC)
        if key is None:
            return KeyUse(run_id=f"{name}-{new_identifier()}", sha256=sha256, taken_at=now)

        def taken(present: KeyUse | None) -> KeyUse:
            if present is not None and not present.is_free:
                if present.sha256 != sha256:
                    raise Conflict(
                        f"this idempotency key was used for another document ({present.run_id}); "
                        "use a new key"
                    )
                return present
            uses = 0 if present is None else present.uses + 1
            end = short_digest(self._kind, owner, key, str(uses))
            if uses == 0 and is_identifier(key):
                end = key
            return KeyUse(uses=uses, run_id=f"{name}-{end}", sha256=sha256, taken_at=now)

        return await self._change(self.name(owner, key), taken)

    async def retake(self, owner: str, key: str, name: str, known: KeyUse) -> KeyUse:
        """Take a key anew whose run Temporal does not know, if it was not just to be started."""
        if datetime.now(UTC) - known.taken_at < STARTING:
            return known
        await self.free(self.name(owner, key), known.run_id)
        return await self.take(owner, key, name, known.sha256)

    async def free(self, key_name: str, run_id: str) -> None:
        """Let go of a key, if it stands for this run."""

        def freed(present: KeyUse | None) -> KeyUse:
            if present is None:
                raise _Unknown
            if present.run_id != run_id:
                return present
            return present.model_copy(update={"is_free": True})

        try:
            await self._change(key_name, freed)
        except _Unknown:
            return

    async def _change(self, key_name: str, change: Callable[[KeyUse | None], KeyUse]) -> KeyUse:
        register = Register(self._store, keys_prefix(self._kind, key_name))
        return await asyncio.to_thread(register.change, KeyUse, change)


class _Unknown(Exception):
    """Nobody has ever used the key."""


def document_digest(document: BaseModel) -> str:
    """Digest of what a document says; what it leaves to defaults does not count."""
    dump = document.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(dump, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
