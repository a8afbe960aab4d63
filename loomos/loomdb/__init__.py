"""Events and the provenance ledger.

`LoomDB` is an event store on SQLite or PostgreSQL whose every event is a leaf of a signed Merkle
log. Formats and checks (`merkle`, `notes`, `checkpoints`, `bundles`, `policies`) need no database
and are imported alone by whoever only verifies; the rest is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOME = {
    "AuditContext": "events",
    "Event": "events",
    "EventType": "event_types",
    "LoomDB": "database",
    "MetricSummary": "metrics",
    "Metrics": "metrics",
    "NewEvent": "events",
    "Projection": "projections",
    "Recorded": "appends",
    "Service": "events",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'loomos.loomdb' has no attribute {name!r}")
    return getattr(import_module(f"loomos.loomdb.{_HOME[name]}"), name)
