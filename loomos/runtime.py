"""How every LoomOS process starts and ends.

A process that has used a Temporal client may abort while the interpreter shuts down
(temporalio/sdk-python issue 300), so processes end by flushing and leaving at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

from loomos.errors import LoomOSError


def leave(code: int) -> NoReturn:
    """End the process now with this exit code, everything printed."""
    sys.stdout.flush()
    sys.stderr.flush()
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
        try:
            await main(stop)
        except LoomOSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    leave(asyncio.run(guarded()))
