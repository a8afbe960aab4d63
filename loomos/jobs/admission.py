"""Messages about requests that the cluster has no room for yet, and changes of those it has."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from loomos.jobs.message import CompactMessage, Message
from loomos.quantities import Duration


class LeaseDeferred(Message):
    """The queue is full: a request waits for admission, and its holder asks again when called."""

    job_id: str
    """Holder."""
    run_id: str
    """Holder's run."""
    ticket: int
    """Ticket of the request that it answers."""
    reason: str
    """For people."""
    retry_after: Duration
    """The holder asks again after this time even if nobody calls it."""


class AdmissionOpen(Message):
    """There is room in the queue now: whoever waits for admission asks again."""

    job_id: str
    """Holder."""


class LeaseChange(Message):
    """A job's priority has changed; what it holds and what it waits for follow."""

    job_id: str
    """Holder."""
    run_id: str
    """Holder's run."""
    priority: int = Field(ge=1, le=5)
    """New priority."""


class Deferred(CompactMessage):
    """A request that waits for admission: no more of it is kept than is needed to call it."""

    job_id: str
    """Holder."""
    priority: int = 3
    """How urgent."""
    project: str = "default"
    """For whom."""
    submitted_at: datetime
    """When the job was submitted."""
    since: datetime
    """When it first asked: its age counts from then, once it is admitted."""
    nodes_wanted: int = 1
    """Fewest nodes it can start with."""
    called_at: datetime | None = None
    """When it was called, if it was."""


class AuditReport(Message):
    """The newest look for holders that ended without a word."""

    at: datetime | None = None
    """When it was over; none if there was none yet."""
    looked_at: int = 0
    """Holders of leases and requests that were looked at."""
    gone: int = 0
    """Those that were gone, whose leases and requests ended."""
    failures: int = 0
    """Audits in a row that failed; leases are given out all the same."""
    error: str = ""
    """Why the newest one failed; empty if it did not."""
    after: tuple[str, str] | None = None
    """Holder that was looked at last, if the next audit goes on from there."""
