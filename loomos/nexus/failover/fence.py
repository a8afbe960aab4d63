"""Where leaders write: only the newest term is let through.

A leader that slept through its own deposition may believe in itself for a moment. It does no harm
as long as whatever it writes to refuses older terms (Kleppmann, "How to do distributed locking",
2016: fencing tokens). Each write is a revision created by put-if-absent, so that the check and the
write are one.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from loomos.errors import Conflict
from loomos.storage import Store
from loomos.storage.layout import leadership_prefix
from loomos.storage.register import Register


class Written(BaseModel):
    """What a leader wrote."""

    term: int
    """Under which term."""
    writer: str
    """Who."""
    content: Any = None
    """JSON."""


class Fence:
    """The value that the leaders of a group hand on.

    Args:
        store: where it is.
        group: whose.
    """

    def __init__(self, store: Store, group: str) -> None:
        self._group = group
        self._register = Register(store, leadership_prefix(group))

    def read(self) -> Written | None:
        """What the last leader wrote."""
        newest = self._register.read()
        return None if newest is None else Written.model_validate_json(newest.data)

    def enter(self, term: int, writer: str) -> Written:
        """Begin a term: from now on older ones are refused; returns what was handed on.

        Raises:
            Conflict: the term is over already.
        """

        def begin(known: Written | None) -> Written:
            self._refuse_older(known, term)
            return Written(term=term, writer=writer, content=known.content if known else None)

        return self._register.change(Written, begin)

    def write(self, term: int, writer: str, content: Any) -> Written:
        """Write under a term.

        Raises:
            Conflict: the term is over.
        """

        def replace(known: Written | None) -> Written:
            self._refuse_older(known, term)
            return Written(term=term, writer=writer, content=content)

        return self._register.change(Written, replace)

    def _refuse_older(self, known: Written | None, term: int) -> None:
        if known is not None and known.term > term:
            raise Conflict(
                f"term {term} of {self._group} is over: {known.writer} leads in term {known.term}"
            )
