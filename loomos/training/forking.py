"""Handing a checkpoint over to another run: how a population's members take over from the best."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from loomos.errors import NotFound
from loomos.jobs.training import CheckpointRef
from loomos.storage import Store
from loomos.storage.layout import (
    checkpoint_prefix,
    checkpoints_prefix,
    fence_key,
    parse_checkpoint_manifest,
    parse_fence,
)
from loomos.training.fences import Fence, read_fence

MANIFEST = "manifest.json"
FORK_GENERATION = 1


def fork(store: Store, parent: str, child: str) -> None:
    """Make the newest checkpoint of `parent` the first of `child`; done twice it changes nothing.

    It becomes the child's generation 1, as if that had been an attempt of its own; the child's
    attempts come after it.

    Raises:
        NotFound: the parent has no checkpoint.
    """
    generations = [parse_fence(item.key) for item in store.objects(checkpoints_prefix(child))]
    if max((g for g in generations if g is not None), default=0) > FORK_GENERATION:
        return
    source = _newest(store, parent)
    target = checkpoint_prefix(child, FORK_GENERATION, source.step)
    if store.exists(target + MANIFEST):
        return
    fence = Fence(claim=f"fork/{parent}", accepted=[])
    store.put_if_absent(fence_key(child, FORK_GENERATION), fence.model_dump_json().encode())
    prefix = checkpoint_prefix(parent, source.generation, source.step)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shard"
        for item in store.objects(prefix):
            if not item.key.endswith("/" + MANIFEST):
                store.get_file(item.key, file)
                store.put_file(target + item.key.removeprefix(prefix), file)
    manifest = _rewritten(store.get(prefix + MANIFEST), child)
    store.put(target + MANIFEST, manifest)


def _rewritten(manifest: bytes, child: str) -> bytes:
    """The manifest as the child's; what the parent was judged by stays with the parent."""
    content = json.loads(manifest)
    content.update(job_id=child, generation=FORK_GENERATION, parent=None)
    content["progress"]["evaluations"] = []
    return json.dumps(content).encode()


def _newest(store: Store, job_id: str) -> CheckpointRef:
    """The newest checkpoint that counts."""
    keys = [item.key for item in store.objects(checkpoints_prefix(job_id))]
    newest = max((g for g in map(parse_fence, keys) if g is not None), default=0)
    committed = {parsed for parsed in map(parse_checkpoint_manifest, keys) if parsed}
    counting = {(g, step) for g, step in committed if g == newest}
    if newest:
        accepted = read_fence(store, job_id, newest).accepted
        counting |= {(r.generation, r.step) for r in accepted} & committed
    if not counting:
        raise NotFound(f"{job_id} has no checkpoint to go on from")
    generation, step = max(counting, key=lambda found: (found[1], found[0]))
    return CheckpointRef(generation=generation, step=step)
