"""When a request would be served, if everything takes as long as estimated."""

from __future__ import annotations

import heapq
import itertools
from datetime import datetime

from loomos.jobs.cluster import Forecast, Lease, LeaseRequest, ReleaseRequest
from loomos.limits import later
from loomos.nexus.allocation import Allocation
from loomos.nexus.usage import Waiting

MOST_ROUNDS = 300
"""Rounds that are played at most: the workflow that plays them decides nothing meanwhile."""
MOST_WORK = 30_000
"""Rounds times nodes and requests, likewise."""


def forecast(cluster: Allocation, request: LeaseRequest, now: datetime) -> Forecast:
    """Play the queue forward with the cluster's own rules.

    It is hopeful where nothing is known: a lease or request without an estimate is taken to end as
    soon as it can. So a start later than a deadline allows is one that estimates rule out.

    Args:
        cluster: as it is; it is not changed.
        request: who asks.
        now: the time.

    Returns:
        When it would start and end; unknown where that would take too long to find out.
    """
    future = Allocation.from_state(cluster.to_state())
    future.request(request, now)
    ends: list[tuple[datetime, int, Lease]] = []
    order = itertools.count()
    rounds = min(MOST_ROUNDS, MOST_WORK // (1 + len(future.nodes) + len(future.queue)))
    for lease in future.leases.values():
        heapq.heappush(ends, (max(now, lease.ends_by or now), next(order), lease))
    for _ in range(rounds):
        given, asked_back = future.decide(now)
        for lease in given:
            if lease.job_id == request.job_id:
                ends_at = None if request.estimate is None else later(now, request.estimate)
                return Forecast(starts_at=now, ends_at=ends_at)
            heapq.heappush(ends, (lease.ends_by or now, next(order), lease))
        for lease, _ in asked_back:
            heapq.heappush(ends, (now, next(order), lease))
        if not ends:
            made = future.round(now).decide(explain=True)
            return Forecast(reason=made.reasons.get(request.job_id, ""))
        now, _, lease = heapq.heappop(ends)
        future.release(
            ReleaseRequest(job_id=lease.job_id, run_id=lease.run_id, epoch=lease.epoch), now
        )
    why_never = cluster.round(now).why_never(Waiting(request, now))
    if why_never is not None:
        return Forecast(reason=why_never)
    return Forecast(reason="too much waits to play the queue forward", is_unknown=True)
