"""Saving and restoring the checkpoints of a run: asynchronous, kept within bounds.

What a checkpoint is on disk is in `loomos.training.shards`; which ones count for a new attempt is
decided by `loomos.training.fences`.
"""

from __future__ import annotations

import functools
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from loomos.errors import CheckpointCorrupt
from loomos.jobs.training import CheckpointRef
from loomos.storage import Store
from loomos.storage.layout import (
    checkpoint_prefix,
    checkpoints_prefix,
    parse_checkpoint_manifest,
    parse_fence,
    retired_key,
)
from loomos.training.fences import is_fenced, read_fence
from loomos.training.shards import (
    MANIFEST,
    CheckpointManifest,
    StoreReader,
    StoreWriter,
    TensorDict,
    read_manifest,
)


@dataclass(kw_only=True)
class Checkpointer:
    """Saves and restores the checkpoints of one generation. Every rank makes one."""

    store: Store
    job_id: str
    generation: int
    scratch: Path
    keep: int
    on_commit: Callable[[CheckpointRef], None]
    """Called on the coordinator after a commit, in the saving thread."""
    on_corrupt: Callable[[CheckpointRef, str], None]
    """Called on the coordinator for each checkpoint that is passed over."""
    group: Any = None
    """Gloo group of its own: DCP's collectives must not mix with the optimizer's."""
    parent: CheckpointRef | None = None
    blocked_s: float = 0.0
    """Time that saving has held up training."""
    _pending: Future[None] | None = None

    @property
    def _is_coordinator(self) -> bool:
        return dist.get_rank() == 0

    def save(
        self,
        state: TensorDict,
        *,
        step: int,
        progress: dict[str, Any],
        validation_loss: float | None = None,
    ) -> None:
        """Copy `state` aside and write it while training goes on.

        Waits for the previous save first, so at most one is on its way.
        """
        began = time.monotonic()
        self.wait()
        manifest = CheckpointManifest(
            job_id=self.job_id,
            generation=self.generation,
            step=step,
            world_size=dist.get_world_size(),
            parent=self.parent,
            progress=progress,
            validation_loss=validation_loss,
        )
        staged = _copy_to_cpu(state)
        self._pending = Future()
        threading.Thread(
            target=self._write, args=(staged, manifest, self._pending), name="checkpoint"
        ).start()
        self.blocked_s += time.monotonic() - began

    def wait(self) -> None:
        """Wait until the save on its way is committed; raise what it raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, staged: TensorDict, manifest: CheckpointManifest, done: Future[None]) -> None:
        prefix = checkpoint_prefix(self.job_id, self.generation, manifest.step)
        scratch = self.scratch / f"save-{manifest.generation}-{manifest.step}"
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                dcp_save(
                    staged,
                    storage_writer=StoreWriter(self.store, prefix, scratch, manifest),
                    process_group=self.group,
                    no_dist=dist.get_world_size() == 1,
                )
            # The save ended on all ranks together, so nobody writes here any more: each node's
            # ranks free its disk.
            shutil.rmtree(scratch, ignore_errors=True)
            if self._is_coordinator:
                self.on_commit(CheckpointRef(generation=self.generation, step=manifest.step))
                self.forget_old()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def load_newest(
        self, accepted: list[CheckpointRef], state: Callable[[CheckpointManifest], TensorDict]
    ) -> CheckpointManifest | None:
        """Fill the state from the newest accepted checkpoint that is whole.

        Args:
            accepted: checkpoints that count, oldest first.
            state: makes the tensors to load into, for a given manifest.

        Returns:
            The manifest of the loaded checkpoint, or None if there was none.
        """
        for ref in reversed(accepted):
            scratch = self.scratch / f"load-{ref.generation}-{ref.step}"
            problem = self._verify(ref, scratch)
            if problem is None:
                manifest = read_manifest(self.store, self.job_id, ref)
                prefix = checkpoint_prefix(self.job_id, ref.generation, ref.step)
                reader = StoreReader(self.store, prefix, scratch, manifest)
                tensors = state(manifest)
                if manifest.world_size == dist.get_world_size():
                    tensors.update(reader.own_tensors(dist.get_rank()))
                dcp_load(
                    tensors,
                    storage_reader=reader,
                    process_group=self.group,
                    no_dist=dist.get_world_size() == 1,
                )
                dist.barrier(group=self.group)
                shutil.rmtree(scratch, ignore_errors=True)
                self.parent = ref
                return manifest
            shutil.rmtree(scratch, ignore_errors=True)
            if self._is_coordinator:
                self.on_corrupt(ref, problem)
        return None

    def _verify(self, ref: CheckpointRef, scratch: Path) -> str | None:
        """Check every shard, spread over the ranks; the first problem found, same on all ranks."""
        problem: str | None = None
        try:
            manifest = read_manifest(self.store, self.job_id, ref)
            prefix = checkpoint_prefix(self.job_id, ref.generation, ref.step)
            reader = StoreReader(self.store, prefix, scratch, manifest)
            for shard in manifest.shards[dist.get_rank() :: dist.get_world_size()]:
                reader.fetch(shard.name)
        except CheckpointCorrupt as error:
            problem = str(error)
        found: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, problem, group=self.group)
        return next((p for p in found if p is not None), None)

    def forget_old(self) -> None:
        """Delete what is not worth keeping: all but the newest `keep` and the best.

        A manifest goes before its shards, so what is half deleted no longer exists. Shards of
        older generations without a manifest, and checkpoints of older generations that this
        generation's fence does not accept, go too. At least two stay: a newer generation may
        have accepted the newest but one.
        """
        if is_fenced(self.store, self.job_id, self.generation):
            return
        keys = [item.key for item in self.store.objects(checkpoints_prefix(self.job_id))]
        fence = read_fence(self.store, self.job_id, self.generation)
        accepted = {(ref.generation, ref.step) for ref in fence.accepted}
        committed = sorted(
            ref
            for ref in (parse_checkpoint_manifest(key) for key in keys)
            if ref and (ref[0] == self.generation or ref in accepted)
        )
        kept = set(committed[-max(self.keep, 2) :]) | self._best(committed)
        newest = committed[-1] if committed else (0, 0)
        doomed = [
            key
            for key in keys
            if parse_fence(key) is None
            and (owner := _owner(key)) is not None
            and owner not in kept
            and owner < newest
        ]
        for key in doomed:
            if (ref := parse_checkpoint_manifest(key)) is not None:
                # The ledger may not know of it yet; its manifest says all that it needs.
                self.store.put(retired_key(self.job_id, *ref), self.store.get(key))
        self.store.delete(sorted(doomed, key=lambda key: not key.endswith(MANIFEST)))

    def _best(self, committed: list[tuple[int, int]]) -> set[tuple[int, int]]:
        losses = {ref: loss for ref in committed if (loss := self._loss_of(*ref)) is not None}
        return {min(losses, key=lambda ref: (losses[ref], ref))} if losses else set()

    @functools.cache  # noqa: B019  (one Checkpointer a process; manifests never change)
    def _loss_of(self, generation: int, step: int) -> float | None:
        ref = CheckpointRef(generation=generation, step=step)
        try:
            return read_manifest(self.store, self.job_id, ref).validation_loss
        except CheckpointCorrupt:
            return None

    def __hash__(self) -> int:
        return id(self)


def _owner(key: str) -> tuple[int, int] | None:
    """(generation, step) of the checkpoint that any of its keys belongs to."""
    folder = key.rpartition("/")[0]
    return parse_checkpoint_manifest(f"{folder}/{MANIFEST}")


def _copy_to_cpu(state: TensorDict) -> TensorDict:
    """A copy that the optimizer will not touch; DTensors stay DTensors on the CPU."""
    return {
        key: _copy_to_cpu(value) if isinstance(value, dict) else _copy_tensor(value)
        for key, value in state.items()
    }


def _copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        cpu_mesh = mesh if mesh.device_type == "cpu" else _cpu_twin(mesh)
        return DTensor.from_local(
            tensor.to_local().detach().to("cpu", copy=True),
            cpu_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    return tensor.detach().to("cpu", copy=True)


@functools.cache
def _cpu_twin(mesh: DeviceMesh) -> DeviceMesh:
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)
