"""Somebody who listens at a port, for tests of whom one trusts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

Answer = Callable[[str], tuple[int, bytes | None]]
"""Status and body for a request, given as its text; a body of None never ends."""


class Listener:
    """A server of HTTP that remembers what it was sent."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.address = ""

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            request = head + await reader.readexactly(length)
            self.requests.append(request)
            status, body = self.answer(request.decode("latin-1"))
            size = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
            writer.write(b"HTTP/1.1 %d X\r\nConnection: close\r\n%s\r\n" % (status, size))
            writer.write(body or b"")
            while body is None:
                writer.write(b"x" * 65536)
                await writer.drain()
            await writer.drain()
        writer.close()


@asynccontextmanager
async def listening(answer: Answer, port: int = 0) -> AsyncIterator[Listener]:
    """A listener on this machine for as long as the block takes."""
    listener = Listener(answer)
    server = await asyncio.start_server(listener.serve, "127.0.0.1", port)
    host, found = server.sockets[0].getsockname()
    listener.address = f"{host}:{found}"
    try:
        yield listener
    finally:
        server.close()
