"""The platform's parts by the names that programs know: `Scheduler`, `Weaver`, `LoomDB`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomos._lazy import lazy

if TYPE_CHECKING:
    from loomos.core.scheduler import Scheduler as Scheduler
    from loomos.core.weaver import Weaver as Weaver
    from loomos.loomdb import LoomDB as LoomDB

__getattr__ = lazy(
    __name__,
    {
        "LoomDB": "loomos.loomdb",
        "Scheduler": "loomos.core.scheduler",
        "Weaver": "loomos.core.weaver",
    },
)
