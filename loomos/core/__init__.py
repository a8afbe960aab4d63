"""The platform's parts by the names that programs know: `Scheduler`, `Weaver`, `LoomDB`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loomos.core.scheduler import Scheduler as Scheduler
    from loomos.core.weaver import Weaver as Weaver
    from loomos.loomdb import LoomDB as LoomDB


def __getattr__(name: str) -> Any:  # a program that schedules need not load a database
    if name == "Scheduler":
        from loomos.core.scheduler import Scheduler

        return Scheduler
    if name == "Weaver":
        from loomos.core.weaver import Weaver

        return Weaver
    if name == "LoomDB":
        from loomos.loomdb import LoomDB

        return LoomDB
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
