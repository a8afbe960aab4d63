"""A value that changes by compare-and-set, in a store that can only create.

Each revision is an object of its own, `<prefix><number>.json`; to change the value is to create the
next number, which only one writer can. The newest revision is the value, the others its history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from loomos.errors import Conflict, NotFound
from loomos.storage import Store

KEPT_REVISIONS = 100

ModelT = TypeVar("ModelT", bound=BaseModel)


class Revision(NamedTuple):
    """One state of the value."""

    number: int
    """Counts from 1."""
    data: bytes
    """Content."""


class Register:
    """The value below one prefix.

    Args:
        store: where it is.
        prefix: ends in `/`; nothing else lives below it.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def key(self, number: int) -> str:
        """Where a revision is."""
        return f"{self._prefix}{number:010d}.json"

    def read(self, after: int = 0) -> Revision | None:
        """The newest revision, if it is newer than `after`; one listing if it is not."""
        numbers = self.numbers(after)
        while numbers:
            try:
                return Revision(numbers[-1], self._store.get(self.key(numbers[-1])))
            except NotFound:  # pruned between the two calls, so there are newer ones
                numbers = self.numbers(numbers[-1])
        return None

    def numbers(self, after: int = 0) -> list[int]:
        """Numbers of the revisions kept, oldest first."""
        start = self.key(after) if after else ""
        keys = (item.key for item in self._store.objects(self._prefix, start))
        names = (key.removeprefix(self._prefix).removesuffix(".json") for key in keys)
        return [int(name) for name in names if name.isdecimal()]

    def get(self, number: int) -> bytes:
        """One revision; raises `NotFound`."""
        return self._store.get(self.key(number))

    def change(self, model: type[ModelT], change: Callable[[ModelT | None], ModelT]) -> ModelT:
        """Make the next value of the present one; if somebody else was faster, make it again.

        Args:
            model: what the revisions hold.
            change: gets the present value, None if there is none. It may refuse by raising; if
                it gives back what it got, nothing is written.

        Returns:
            The value as it is now.
        """
        while True:
            newest = self.read()
            value = None if newest is None else model.model_validate_json(newest.data)
            wanted = change(value)
            if wanted == value:
                return wanted
            number = (newest.number if newest else 0) + 1
            if self._create(number, wanted.model_dump_json().encode()):
                return wanted

    def write(self, number: int, data: bytes) -> None:
        """Create revision `number`, the one after what the caller has read.

        Raises:
            Conflict: somebody else has created it; read again.
        """
        if not self._create(number, data):
            raise Conflict(f"{self._prefix} has changed to revision {number} meanwhile")

    def _create(self, number: int, data: bytes) -> bool:
        if not self._store.put_if_absent(self.key(number), data):
            return False
        if number % KEPT_REVISIONS == 0:
            old = range(max(1, number - 2 * KEPT_REVISIONS), number - KEPT_REVISIONS + 1)
            self._store.delete([self.key(n) for n in old])
        return True
