"""A process that does not sequence: its appends go through the inbox, and answers come back.

A request lies in `inbox` until the leader has answered it, in the commit that wrote its events. If
its row has been cleared away before the answer was read, it is asked again; ids make that safe.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, select, text

from loomos.errors import LoomOSError
from loomos.loomdb.appends import Append, Recorded, decode_outcome
from loomos.loomdb.backend import Backend
from loomos.loomdb.schema import inbox

_PUT = text(
    "INSERT INTO inbox (request_id, request, submitted_us) "
    "VALUES (:request_id, :request, :submitted_us) ON CONFLICT DO NOTHING"
)


class Forwarder:
    """Requests of this process that wait for the leader's answer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiting: dict[str, Append] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Append]:
        return iter(list(self._waiting.values()))

    async def put(self, requests: Sequence[Append]) -> None:
        """Hand requests to the leader; a second time nothing happens."""
        rows = [
            {
                "request": request.encode(),
                "request_id": request.request_id,
                "submitted_us": time.time_ns() // 1000,
            }
            for request in requests
        ]

        def put(connection: Connection) -> None:
            connection.execute(_PUT, rows)
            self._backend.ring_sequencer(connection)

        await self._backend.write_once(put)
        self._waiting |= {request.request_id: request for request in requests}

    async def collect(self) -> list[Append]:
        """Take answers and pass them on.

        Returns:
            Requests whose rows are gone unanswered: they must be put again.
        """
        self._waiting = {i: r for i, r in self._waiting.items() if not r.outcome.cancelled()}
        query = select(inbox.c.request_id, inbox.c.outcome).where(
            inbox.c.request_id.in_(list(self._waiting))
        )
        rows = await self._backend.read_once(lambda c: c.execute(query).all())
        found = {request_id: outcome for request_id, outcome in rows}
        lost: list[Append] = []
        for request_id in list(self._waiting):
            if request_id not in found:
                request = self._waiting.pop(request_id)
                request.doubt()
                lost.append(request)
            elif found[request_id] is not None:
                self.answer(request_id, decode_outcome(found[request_id]))
        return lost

    def answer(self, request_id: str, outcome: list[Recorded] | LoomOSError) -> None:
        """Pass an answer on, if it is of one of these requests."""
        request = self._waiting.pop(request_id, None)
        if request is not None:
            request.answer(outcome)
