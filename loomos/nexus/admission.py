"""Who is admitted to a queue that is full, and who is called when there is room again.

A request that finds the queue full takes the place of the one that is farthest from its turn, or
waits itself. Those that wait are remembered by little more than their names, so that ten thousand
of them fit into one message; their jobs keep the request and ask again when they are called. A
request that finds even that list full comes back by its job's own clock, one at a time. So nothing
is lost and nothing grows.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from loomos.jobs.admission import Deferred, LeaseDeferred
from loomos.jobs.cluster import LeaseRequest, SchedulerConfig
from loomos.nexus.ordering import is_starving
from loomos.nexus.usage import Waiting

MOST_QUEUE_BYTES = 2_000_000
"""Of the requests in the queue: 2000 of 1000 bytes. What is heavier makes the queue shorter."""
MOST_REQUEST_BYTES = 64 * 1024
"""No request has more, whatever its job's document asked for."""
MOST_DEFERRED = 9000
"""Requests outside the queue that are remembered."""
CALL_AGAIN = timedelta(hours=1)
"""A job that is remembered asks again by itself after this time, should its call be lost."""
FIRST_RETURN = timedelta(minutes=5)
"""A job that is not remembered asks again after this time at the earliest."""
RETURN_SPACING = timedelta(seconds=1)
"""Time between two jobs that come back unremembered."""
CALL_PATIENCE = timedelta(minutes=1)
"""A job that was called and has not asked for so long is forgotten: it waits no more."""


@dataclass
class Lobby:
    """Requests that wait for admission.

    Args:
        waiting: those remembered, by job.
        return_at: when the last of the others comes back.
    """

    waiting: dict[str, Deferred] = field(default_factory=dict)
    return_at: datetime | None = None
    _order: list[str] | None = None

    def since(self, request: LeaseRequest, now: datetime) -> datetime:
        """When a request that comes now was first made; it waits for admission no more."""
        known = self.leave(request.job_id)
        return known.since if known is not None else now

    def leave(self, job_id: str) -> Deferred | None:
        """A job waits for admission no more."""
        self._order = None
        return self.waiting.pop(job_id, None)

    def enter(self, waiting: Waiting, limit: int, now: datetime) -> LeaseDeferred:
        """A request finds no room; returns what its holder is told."""
        request, retry_after = waiting.request, CALL_AGAIN
        if len(self.waiting) < MOST_DEFERRED:
            self._order = None
            self.waiting[request.job_id] = Deferred(
                job_id=request.job_id,
                priority=request.priority,
                project=request.project,
                submitted_at=request.submitted_at,
                since=waiting.since,
                nodes_wanted=request.resources.node_range.min,
            )
        else:
            earliest = now + FIRST_RETURN
            last = self.return_at or earliest
            self.return_at = max(earliest, last + RETURN_SPACING)
            retry_after = self.return_at - now
        return LeaseDeferred(
            job_id=request.job_id,
            run_id=request.run_id,
            ticket=request.ticket,
            reason=f"the cluster's queue is full ({limit} requests)",
            retry_after=retry_after,
        )

    def prioritise(self, job_id: str, priority: int) -> None:
        """A job that waits has another priority now."""
        known = self.waiting.get(job_id)
        if known is not None:
            self._order = None
            self.waiting[job_id] = known.model_copy(update={"priority": priority})

    def call(
        self, queue: Sequence[Waiting], limit: int, now: datetime, most: int | None = None
    ) -> list[str]:
        """Jobs that may ask again now, since the queue has room for them; at most `most`.

        With `most` given, the queue must have room for them however large their requests are.
        """
        if not self.waiting or limit - len(queue) < max(1, limit // 20):
            return []
        coming = 0
        for each in list(self.waiting.values()):
            if each.called_at is None:
                continue
            if now - each.called_at > CALL_PATIENCE:
                self.leave(each.job_id)
            else:
                coming += 1
        room = limit - len(queue) - coming
        if most is not None:
            free_bytes = MOST_QUEUE_BYTES - sum(each.size_bytes for each in queue)
            room = min(room, most, free_bytes // MOST_REQUEST_BYTES - coming)
        chosen: list[str] = []
        for job_id in self.order(queue) if room > 0 else ():
            if len(chosen) == room:
                break
            if self.waiting[job_id].called_at is None:
                chosen.append(job_id)
        for job_id in chosen:
            self.waiting[job_id] = self.waiting[job_id].model_copy(update={"called_at": now})
        return chosen

    def order(self, queue: Iterable[Waiting] = ()) -> list[str]:
        """Jobs in the order in which they are called: by class, then by turns of the projects."""
        if self._order is None:
            held = Counter(waiting.request.project for waiting in queue)
            ranked = []
            for each in sorted(self.waiting.values(), key=_age):
                held[each.project] += 1
                ranked.append((each.priority, held[each.project], each.submitted_at, each.job_id))
            self._order = [job_id for *_, job_id in sorted(ranked)]
        return self._order


def farthest(
    queue: Iterable[Waiting],
    count: int,
    config: SchedulerConfig,
    now: datetime,
    surplus_bytes: int = 0,
) -> list[Waiting]:
    """The requests that a full queue would miss least, the first of them first.

    There are `count` of them or more, and together they have `surplus_bytes` or more.

    Each is the one that is farthest from its turn once those before it are gone: of the lowest
    class, of the project that has most in the queue, the youngest. One that starves stays as long
    as others do not. What a project has is counted in bytes where there are too many of those.
    """
    waiting = list(queue)
    held: Counter[str] = Counter()

    def weight(each: Waiting) -> int:
        return each.size_bytes if surplus_bytes > 0 else 1

    for each in waiting:
        held[each.request.project] += weight(each)

    def ranked(each: Waiting) -> _Far:
        asked = each.request
        rank = (
            not is_starving(each, config, now),
            asked.priority,
            not asked.is_recovery,
            held[asked.project],
            asked.submitted_at,
            asked.job_id,
        )
        return _Far(rank, each)

    heap = [ranked(each) for each in waiting]
    heapq.heapify(heap)
    found: list[Waiting] = []
    freed = 0
    while heap and (len(found) < count or freed < surplus_bytes):
        top = ranked(heap[0].waiting)
        if top.rank < heap[0].rank:  # its project holds less of the queue by now
            heapq.heapreplace(heap, top)
            continue
        heapq.heappop(heap)
        held[top.waiting.request.project] -= weight(top.waiting)
        found.append(top.waiting)
        freed += weight(top.waiting)
    return found


@dataclass(frozen=True)
class _Far:
    """A request and how far it is from its turn; the farthest is the least, for a heap."""

    rank: tuple[Any, ...]
    waiting: Waiting

    def __lt__(self, other: _Far) -> bool:
        return self.rank > other.rank


def _age(deferred: Deferred) -> tuple[int, datetime, str]:
    return deferred.priority, deferred.submitted_at, deferred.job_id
