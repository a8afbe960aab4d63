"""The platform's parts under the names that programs know them by: `Scheduler`, `LoomDB`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loomos.core.scheduler import Scheduler as Scheduler
    from loomos.loomdb import LoomDB as LoomDB


def __getattr__(name: str) -> Any:  # a program that schedules need not load a database
    if name == "Scheduler":
        from loomos.core.scheduler import Scheduler

        return Scheduler
    if name == "LoomDB":
        from loomos.loomdb import LoomDB

        return LoomDB
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
