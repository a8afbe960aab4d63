"""Events and the provenance ledger.

`LoomDB` is an event store on SQLite or PostgreSQL whose every event is a leaf of a signed Merkle
log. Formats and checks (`merkle`, `notes`, `checkpoints`, `bundles`, `policies`) need no database
and are imported alone by whoever only verifies; the rest is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomos._lazy import lazy

if TYPE_CHECKING:
    from loomos.loomdb.appends import Recorded
    from loomos.loomdb.database import LoomDB
    from loomos.loomdb.event_types import EventType
    from loomos.loomdb.events import AuditContext, Event, NewEvent, Service
    from loomos.loomdb.metrics import Metrics, MetricSummary
    from loomos.loomdb.projections import Projection

__all__ = [
    "AuditContext",
    "Event",
    "EventType",
    "LoomDB",
    "MetricSummary",
    "Metrics",
    "NewEvent",
    "Projection",
    "Recorded",
    "Service",
]

__getattr__ = lazy(
    __name__,
    {
        "AuditContext": "loomos.loomdb.events",
        "Event": "loomos.loomdb.events",
        "EventType": "loomos.loomdb.event_types",
        "LoomDB": "loomos.loomdb.database",
        "MetricSummary": "loomos.loomdb.metrics",
        "Metrics": "loomos.loomdb.metrics",
        "NewEvent": "loomos.loomdb.events",
        "Projection": "loomos.loomdb.projections",
        "Recorded": "loomos.loomdb.appends",
        "Service": "loomos.loomdb.events",
    },
)
