"""The cluster's state as one message that is never too large.

A workflow that goes on in a new run hands its state over in one payload, and Temporal takes no
payload over 2 MiB. The state is mostly names and repetition, so it is compressed; what is still too
much is what can be learned again.
"""

from __future__ import annotations

import base64
import zlib

from loomos.jobs.cluster import ClusterState

MOST_BYTES = 900_000
"""Of a packed state."""
LEVEL = 3
"""Of compression: the workflow waits for it."""


def pack(state: ClusterState) -> ClusterState:
    """The same state in few bytes."""
    packed = _compressed(state)
    if len(packed) > MOST_BYTES:  # what nodes had before is only a preference
        state = state.model_copy(update={"history": {}, "best_step_s": {}})
        packed = _compressed(state)
    while len(packed) > MOST_BYTES and state.deferred:  # these ask again by themselves
        half = state.deferred[: len(state.deferred) // 2]
        state = state.model_copy(update={"deferred": half})
        packed = _compressed(state)
    return ClusterState(packed=packed)


def unpack(state: ClusterState) -> ClusterState:
    """What `pack` was given."""
    if not state.packed:
        return state
    return ClusterState.model_validate_json(zlib.decompress(base64.b85decode(state.packed)))


def _compressed(state: ClusterState) -> str:
    content = state.model_dump_json(exclude_defaults=True).encode()
    return base64.b85encode(zlib.compress(content, LEVEL)).decode()
