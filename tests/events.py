"""Events and people for tests of LoomDB."""

from __future__ import annotations

from loomos.loomdb import AuditContext, NewEvent, Service

CONTROL = Service(name="control")
ALICE = AuditContext(user_id="alice", session_id="s1", source_ip="192.0.2.7")


def numbered(count: int) -> list[NewEvent]:
    return [NewEvent(event_type="tick", data={"n": n}) for n in range(count)]
