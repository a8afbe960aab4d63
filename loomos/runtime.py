"""How every LoomOS process starts and ends.

A process that has used a Temporal client may abort while the interpreter shuts down
(temporalio/sdk-python issue 300), so processes end by flushing and leaving at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

from loomos import pulse
from loomos.errors import LoomOSError


def leave(code: int) -> NoReturn:
    """End the process now with this exit code, everything printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run_process(main: Callable[[asyncio.Event], Awaitable[None]]) -> NoReturn:
    """Run a server process: `main` gets an event that SIGTERM or SIGINT sets."""
    logging.basicConfig(
        level=os.environ.get("LOOMOS_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)

    async def guarded() -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        beating = asyncio.create_task(pulse.beat())
        try:
            await main(stop)
        except LoomOSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        finally:
            beating.cancel()
        return 0

    leave(asyncio.run(guarded()))
