"""The cluster's state as one message that is never too large.

What is too much even compressed is what can be learned again, and requests that their jobs make
again by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from loomos.jobs.admission import Deferred
from loomos.jobs.cluster import ClusterState, Lease
from loomos.jobs.packing import packed, unpacked
from loomos.nexus.allocation import Allocation
from loomos.nexus.usage import Waiting


def pack(state: ClusterState, now: datetime) -> ClusterState:
    """The same state in few bytes."""
    return ClusterState(packed=packed(_versions(state, now)))


def unpack(state: ClusterState) -> ClusterState:
    """What `pack` was given."""
    return unpacked(ClusterState, state.packed) if state.packed else state


def _versions(state: ClusterState, now: datetime) -> Iterator[ClusterState]:
    """The state, and ever less of it."""
    yield state
    # What nodes had before is only a preference.
    state = state.model_copy(update={"history": {}, "best_step_s": {}})
    yield state
    # Who has nodes is asked no more which ones it wanted; it says so again when it wants others.
    leases = [_without_labels(lease) for lease in state.leases]
    revoked = [(_without_labels(lease), message) for lease, message in state.revoked]
    state = state.model_copy(update={"leases": leases, "revoked": revoked})
    yield state
    while state.queue or state.deferred:
        if _queue_bytes(state) > _deferred_bytes(state.deferred):
            state = _with_half_the_queue(state, now)
        else:  # these ask again by themselves
            half = state.deferred[: len(state.deferred) // 2]
            state = state.model_copy(update={"deferred": half})
        yield state


def _with_half_the_queue(state: ClusterState, now: datetime) -> ClusterState:
    """Half of the requests wait for admission instead."""
    allocation = Allocation.from_state(state)
    told = allocation.turn_away(now, most=len(state.queue) // 2)
    kept = {
        "revoked": state.revoked,
        "turned_away": [*state.turned_away, *told],
        "audit": state.audit,
    }
    return allocation.to_state().model_copy(update=kept)


def _without_labels(lease: Lease) -> Lease:
    if lease.request is None or not lease.request.resources.node_labels:
        return lease
    resources = lease.request.resources.model_copy(update={"node_labels": {}})
    request = lease.request.model_copy(update={"resources": resources})
    return lease.model_copy(update={"request": request})


def _queue_bytes(state: ClusterState) -> int:
    return sum(Waiting(request, since).size_bytes for request, since in state.queue)


def _deferred_bytes(deferred: Sequence[Deferred]) -> int:
    return sum(len(each.model_dump_json()) for each in deferred)
