"""Generations of a job, and which older checkpoints count for each.

A generation starts by writing `fence.json`, which names the older checkpoints that count. The
write is put-if-absent, so there is one winner. What an older generation commits after that is in
no later fence: a rank that sleeps through the loss of its lease and wakes can write, but nobody
will read it. This module knows nothing of torch, so that control workers can use it.
"""

from __future__ import annotations

from loomos.jobs.message import Message
from loomos.jobs.training import AttemptPlan, CheckpointRef
from loomos.storage import Store
from loomos.storage.layout import (
    checkpoints_prefix,
    fence_key,
    parse_checkpoint_manifest,
    parse_fence,
)


class Fence(Message):
    """The object that makes a generation the current one."""

    claim: str
    """Who opened it."""
    accepted: list[CheckpointRef]
    """Older checkpoints that count, oldest first."""


def read_fence(store: Store, job_id: str, generation: int) -> Fence:
    """The fence of a generation that has been opened."""
    return Fence.model_validate_json(store.get(fence_key(job_id, generation)))


def is_fenced(store: Store, job_id: str, generation: int) -> bool:
    """Whether a newer generation has been opened."""
    return store.exists(fence_key(job_id, generation + 1))


def open_generation(store: Store, job_id: str, claim: str, *, from_scratch: bool) -> AttemptPlan:
    """Make a new generation of a job the current one; the same claim gets the same one again.

    Args:
        store: where checkpoints are.
        job_id: whose.
        claim: unique for the attempt.
        from_scratch: let no older checkpoint count.
    """
    known = 0
    while True:
        keys = [item.key for item in store.objects(checkpoints_prefix(job_id))]
        newest = max((g for g in map(parse_fence, keys) if g is not None), default=0)
        newest = max(newest, known)
        committed = {parsed for parsed in map(parse_checkpoint_manifest, keys) if parsed}
        accepted: list[CheckpointRef] = []
        if newest:
            fence = read_fence(store, job_id, newest)
            if fence.claim == claim:
                return AttemptPlan(generation=newest, accepted=fence.accepted)
            accepted = [r for r in fence.accepted if (r.generation, r.step) in committed]
            accepted += [
                CheckpointRef(generation=g, step=s) for g, s in sorted(committed) if g == newest
            ]
        fence = Fence(claim=claim, accepted=[] if from_scratch else accepted)
        if store.put_if_absent(fence_key(job_id, newest + 1), fence.model_dump_json().encode()):
            return AttemptPlan(generation=newest + 1, accepted=fence.accepted)
        known = newest + 1  # it is there, even if a store that lost a folder does not list it
