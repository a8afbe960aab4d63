"""Persons' keys. What is personal in an entry is encrypted with them; destroying one erases it.

The ledger keeps the ciphertext, so no hash changes. Keys are remembered for a second; for that
long another process may still read what was just erased.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable

from sqlalchemy import Connection, select, text, update

from loomos.loomdb.backend import Backend
from loomos.loomdb.events import Subject
from loomos.loomdb.schema import subjects

REMEMBERED_S = 1.0
KEY_BYTES = 32


class SubjectKeys:
    """The table of keys."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._by_name: dict[str, tuple[float, Subject]] = {}

    async def for_writing(self, name: str) -> Subject:
        """The key of a person; made if they have none."""
        known = self._by_name.get(name)
        if known is not None and time.monotonic() - known[0] < REMEMBERED_S:
            return known[1]
        subject = await self.find(name)
        if subject is None:
            add = text(
                "INSERT INTO subjects (reference, name, key) "
                "VALUES (:reference, :name, :key) ON CONFLICT DO NOTHING"
            )
            row = {"reference": uuid.uuid4().hex, "name": name, "key": os.urandom(KEY_BYTES)}
            await self._backend.write(lambda connection: connection.execute(add, row))
            subject = await self.find(name)
            assert subject is not None
        self._by_name[name] = (time.monotonic(), subject)
        return subject

    async def find(self, name: str) -> Subject | None:
        """The key of a person, if they have one."""
        query = select(subjects.c.reference, subjects.c.key).where(subjects.c.name == name)
        row = await self._backend.read(lambda c: c.execute(query).one_or_none())
        return None if row is None else Subject(reference=row[0], key=bytes(row[1]))

    async def for_reading(self, references: Iterable[str]) -> dict[str, bytes]:
        """The keys that still exist, by reference."""
        wanted = sorted(set(references))
        if not wanted:
            return {}

        def find(connection: Connection) -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            for start in range(0, len(wanted), 1000):
                rows = connection.execute(
                    select(subjects.c.reference, subjects.c.key).where(
                        subjects.c.reference.in_(wanted[start : start + 1000]),
                        subjects.c.key.is_not(None),
                    )
                )
                found |= {reference: bytes(key) for reference, key in rows}
            return found

        return await self._backend.read(find)

    async def destroy(self, reference: str) -> None:
        """Forget a person: their name and key."""
        forget = (
            update(subjects).where(subjects.c.reference == reference).values(name=None, key=None)
        )
        await self._backend.erase(lambda connection: connection.execute(forget))
        self._by_name.clear()
