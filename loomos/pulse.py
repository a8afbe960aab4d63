"""A process tells its supervisor that it lives, and whether it is ready.

The supervisor gives each member one end of a pipe; the member writes a byte a second. Nobody else
holds that end, so no stranger can speak for a member, and nothing secret goes the other way. A
member whose event loop hangs, or which was stopped, falls silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

VARIABLE = "LOOMOS_PULSE_FD"
INTERVAL_S = 1.0
READY, WAITING = b"+", b"-"


def _not_yet() -> bool:
    return False


_is_ready: Callable[[], bool] = _not_yet


def ready_when(check: Callable[[], bool]) -> None:
    """Say what makes this process ready; before that it only lives."""
    global _is_ready
    _is_ready = check


async def beat() -> None:
    """Tell the supervisor until cancelled; without one, do nothing."""
    handle = os.environ.pop(VARIABLE, "")
    if not handle.isdecimal():
        return
    pipe = int(handle)
    os.set_inheritable(pipe, False)
    os.set_blocking(pipe, False)
    while True:
        # A full pipe means a supervisor that was stopped; it reads on when it goes on.
        with contextlib.suppress(OSError):
            os.write(pipe, READY if _is_ready() else WAITING)
        await asyncio.sleep(INTERVAL_S)
