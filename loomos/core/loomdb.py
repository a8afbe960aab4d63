"""LoomDB by the name that programs know; it lives in `loomos.loomdb`."""

from __future__ import annotations

from loomos.loomdb import AuditContext, Event, EventType, LoomDB, Metrics, NewEvent

__all__ = ["AuditContext", "Event", "EventType", "LoomDB", "Metrics", "NewEvent"]
