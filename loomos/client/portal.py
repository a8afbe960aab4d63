"""Doing async work from code that is not: in a notebook, a script, a debugger."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """A thread of its own whose event loop does the work, so that one may be running here already.

    The thread is a daemon: a program that forgets to close it can end all the same.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="loomos-portal", daemon=True
        )
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether the thread has ended."""
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something and wait for it; Ctrl-C ends the work too."""
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """What comes, one by one, as it comes."""
        done = object()

        async def following() -> T | object:
            return await anext(items, done)

        async def end() -> None:
            if close := getattr(items, "aclose", None):
                await close()

        try:
            while (item := self.run(following())) is not done:
                yield item  # type: ignore[misc]
        finally:
            if not self._loop.is_closed():
                self.run(end())

    def close(self) -> None:
        """End the thread."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
