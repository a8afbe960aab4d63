"""Messages about what is kept, for how long, and what has been freed."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from loomos.jobs.message import Message


class Sweepable(StrEnum):
    """What garbage collection goes through; what refers comes before what it names."""

    CHECKPOINTS = "checkpoints"
    """Checkpoints, and states of trials, of jobs and experiments that have ended."""
    RECORDS = "records"
    """Logs, metrics and the rest of what a job kept, long after its end."""
    ANSWERS = "answers"
    """What versions said in verifications that are over; reports stay."""
    OUTCOMES = "outcomes"
    """How requests to endpoints went, and requests kept to learn from."""
    SERVERS = "servers"
    """What serving processes said that are gone."""
    UPLOADS = "uploads"
    """Uploads that no document has named for long."""
    DATA = "continual data"
    """What updates learnt from, unless a published version did."""
    BLOBS = "blobs"
    """Inputs that nothing refers to any more."""


class SweepRequest(Message):
    """A bounded part of a collection."""

    what: Sweepable
    """What to go through."""
    dry_run: bool = False
    """Only say what would be freed."""
    after: str = ""
    """Where the part before ended."""


class Swept(Message):
    """What a part of a collection freed."""

    objects: int = 0
    """Objects freed."""
    size_bytes: int = 0
    """Their size."""
    next: str | None = None
    """Where to go on; None at the end."""
    held: str = ""
    """Why something that is old was left, in words."""


class CollectionInput(Message):
    """Input of the `GarbageCollection` workflow."""

    dry_run: bool = False
    """Only say what would be freed."""


class Freed(Message):
    """What was freed of one class."""

    what: Sweepable
    """The class."""
    objects: int = 0
    """Objects."""
    size_bytes: int = 0
    """Their size."""
    note: str = ""
    """What was held back, or went wrong, in words."""


class CollectionReport(Message):
    """What a collection freed, or would free."""

    dry_run: bool
    """Whether nothing was touched."""
    freed: list[Freed]
    """By class."""
    unfinished: dict[Sweepable, str] = {}
    """Classes that a run has not come to the end of, with where the next goes on."""

    @property
    def size_bytes(self) -> int:
        """Of all classes."""
        return sum(freed.size_bytes for freed in self.freed)


class CollectionStatus(Message):
    """A collection and, once it is over, its report."""

    collection_id: str
    """Its id."""
    is_running: bool
    """Whether it goes on."""
    started_at: datetime | None = None
    """When it began."""
    report: CollectionReport | None = None
    """What it freed; none while it runs, or if it was ended."""


class UsedByClass(Message):
    """What one class of objects takes."""

    what: str
    """The class."""
    objects: int
    """Objects."""
    size_bytes: int
    """Their size."""


class StorageUsage(Message):
    """What takes how much of the store."""

    classes: list[UsedByClass]
    """Largest first."""
