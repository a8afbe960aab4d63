"""Connections that say nothing, or too slowly: uvicorn itself waits for a request's head for ever.

`uvicorn --http api.connections:PatientProtocol` serves with the protocol of this file.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_S = 10.0
"""How long the head of a request may take to come, from its first byte or the connection's begin;
and how long the rest of a body is swallowed after the answer was given without it."""

TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP, with an end to its patience."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting()
        elif self._waits is None:
            self._wait()

    def on_response_complete(self) -> None:
        """An answer is out; the time to the next request is uvicorn's keep-alive."""
        super().on_response_complete()
        if self._is_answering:  # a request that came right behind
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._waits = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _give_up(self) -> None:
        self._waits = None
        if not self._is_answering and not self.transport.is_closing():
            if self.cycle is None:
                self.transport.write(TIMED_OUT)
            self.transport.close()
