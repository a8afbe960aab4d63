"""Checkpoints: torch DCP, asynchronous, committed by a manifest, fenced by generation.

A checkpoint exists if and only if its `manifest.json` exists. The manifest is written last and
lists every shard with size and SHA-256. Each rank writes its shards to scratch, uploads them and
passes their digests to the coordinator along DCP's own collective; the coordinator commits.

Which checkpoints count for a new attempt is decided by `loomos.training.fences`.

Only tensors go into DCP; all else is JSON in the manifest. DCP's own metadata file is a pickle and
is opened only after its digest has been checked against the manifest.
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
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from loomos.errors import AttemptFailed, CheckpointCorrupt, NotFound
from loomos.jobs.messages import CheckpointRef, Message
from loomos.storage import Store, file_sha256
from loomos.storage.layout import (
    checkpoint_prefix,
    checkpoints_prefix,
    parse_checkpoint_manifest,
    parse_fence,
)
from loomos.training.fences import is_fenced, read_fence

METADATA_FILE = ".metadata"
MANIFEST = "manifest.json"

TensorDict = dict[str, Any]


class Shard(Message):
    """One file of a checkpoint."""

    name: str
    """File name below the checkpoint's prefix."""
    size_bytes: int
    """Its size."""
    sha256: str
    """Hex digest of its content."""


class CheckpointManifest(Message):
    """The object whose existence makes a checkpoint."""

    format: int = 1
    """Version of this layout."""
    job_id: str
    """Whose checkpoint."""
    generation: int
    """Generation that wrote it."""
    step: int
    """Optimizer steps it holds."""
    world_size: int
    """Ranks that wrote it; random states fit only as many."""
    parent: CheckpointRef | None = None
    """Checkpoint that its generation started from."""
    progress: dict[str, Any] = {}
    """Counters of the loop: JSON, no tensors."""
    validation_loss: float | None = None
    """Validation loss at this step, if it was measured here."""
    shards: list[Shard] = []
    """Every file, DCP's metadata included."""


def read_manifest(store: Store, job_id: str, ref: CheckpointRef) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointCorrupt: it is gone, cut, or speaks of another checkpoint.
    """
    key = checkpoint_prefix(job_id, ref.generation, ref.step) + MANIFEST
    try:
        manifest = CheckpointManifest.model_validate_json(store.get(key))
    except NotFound:
        raise CheckpointCorrupt(f"{key} is gone") from None
    except ValueError:
        raise CheckpointCorrupt(f"{key} is not a whole manifest") from None
    if (manifest.generation, manifest.step) != (ref.generation, ref.step):
        raise CheckpointCorrupt(f"{key} speaks of step {manifest.step}")
    return manifest


# --- writing ------------------------------------------------------------------------------------


@dataclass
class _HashedStorageInfo(_StorageInfo):
    """DCP's record of where a tensor is, with the digest of its file."""

    sha256: str = ""
    file_bytes: int = 0


class _StoreWriter(dcp.FileSystemWriter):
    """Writes shards to scratch, uploads them, and commits by manifest."""

    def __init__(
        self, store: Store, prefix: str, scratch: Path, manifest: CheckpointManifest
    ) -> None:
        super().__init__(scratch, single_file_per_rank=True, sync_files=False, overwrite=True)
        self._store, self._prefix, self._scratch = store, prefix, scratch
        self._manifest = manifest

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """Write and upload this rank's tensors."""
        results = super().write_data(plan, planner).wait()
        shards: dict[str, Shard] = {}
        for name in sorted({result.storage_data.relative_path for result in results}):
            shards[name] = self._upload(name)
        for result in results:
            where = result.storage_data
            shard = shards[where.relative_path]
            object.__setattr__(
                result,
                "storage_data",
                _HashedStorageInfo(
                    relative_path=where.relative_path,
                    offset=where.offset,
                    length=where.length,
                    transform_descriptors=where.transform_descriptors,
                    sha256=shard.sha256,
                    file_bytes=shard.size_bytes,
                ),
            )
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: upload DCP's metadata, then the manifest. Runs on the coordinator only."""
        super().finish(metadata, results)
        if is_fenced(self._store, self._manifest.job_id, self._manifest.generation):
            raise AttemptFailed(
                f"generation {self._manifest.generation} of {self._manifest.job_id} has been "
                f"replaced; its checkpoint of step {self._manifest.step} is not committed"
            )
        shards = {
            r.storage_data.relative_path: Shard(
                name=r.storage_data.relative_path,
                size_bytes=r.storage_data.file_bytes,
                sha256=r.storage_data.sha256,
            )
            for of_rank in results
            for r in of_rank
        }
        shards[METADATA_FILE] = self._upload(METADATA_FILE)
        manifest = self._manifest.model_copy(
            update={"shards": [shards[name] for name in sorted(shards)]}
        )
        self._store.put(self._prefix + MANIFEST, manifest.model_dump_json(indent=1).encode())

    def _upload(self, name: str) -> Shard:
        path = self._scratch / name
        shard = Shard(name=name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
        self._store.put_file(self._prefix + name, path)
        return shard


# --- reading ------------------------------------------------------------------------------------


class _StoreReader(dcp.FileSystemReader):
    """Reads a checkpoint through verified copies in scratch; fetches only what its plan needs."""

    def __init__(
        self, store: Store, prefix: str, scratch: Path, manifest: CheckpointManifest
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        super().__init__(scratch)
        self._store, self._prefix, self._scratch = store, prefix, scratch
        self._shards = {shard.name: shard for shard in manifest.shards}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Fetch and verify DCP's metadata before it is unpickled."""
        self.fetch(METADATA_FILE)
        return super().read_metadata(*args, **kwargs)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """Fetch and verify the files that this rank needs, then read them."""
        for name in {self.storage_data[i.storage_index].relative_path for i in plan.items}:
            self.fetch(name)
        return super().read_data(plan, planner)

    def fetch(self, name: str) -> None:
        """Have a verified copy of one shard in scratch.

        Raises:
            CheckpointCorrupt: it is gone or its bytes differ from the manifest.
        """
        shard, path = self._shards.get(name), self._scratch / name
        if shard is None:
            raise CheckpointCorrupt(f"{self._prefix}{name} is not in the manifest")
        if path.exists() and file_sha256(path) == shard.sha256:
            return
        try:
            self._store.get_file(self._prefix + name, path)
        except NotFound:
            raise CheckpointCorrupt(f"{self._prefix}{name} is gone") from None
        if file_sha256(path) != shard.sha256:
            path.unlink()
            raise CheckpointCorrupt(f"{self._prefix}{name} differs from its SHA-256")


# --- one run's checkpoints ----------------------------------------------------------------------


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
                dcp.save(
                    staged,
                    storage_writer=_StoreWriter(self.store, prefix, scratch, manifest),
                    process_group=self.group,
                    no_dist=dist.get_world_size() == 1,
                )
            if self._is_coordinator:
                self.on_commit(CheckpointRef(generation=self.generation, step=manifest.step))
                self.forget_old()
                shutil.rmtree(scratch, ignore_errors=True)
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
                dcp.load(
                    state(manifest),
                    storage_reader=_StoreReader(self.store, prefix, scratch, manifest),
                    process_group=self.group,
                    no_dist=dist.get_world_size() == 1,
                )
                dist.barrier(group=self.group)
                shutil.rmtree(scratch, ignore_errors=True)
                self.parent = ref
                return manifest
            if self._is_coordinator:
                self.on_corrupt(ref, problem)
        return None

    def _verify(self, ref: CheckpointRef, scratch: Path) -> str | None:
        """Check every shard, spread over the ranks; the first problem found, same on all ranks."""
        problem: str | None = None
        try:
            manifest = read_manifest(self.store, self.job_id, ref)
            prefix = checkpoint_prefix(self.job_id, ref.generation, ref.step)
            reader = _StoreReader(self.store, prefix, scratch, manifest)
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
        keys = [item.key for item in self.store.list(checkpoints_prefix(self.job_id))]
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


def read_tensors(store: Store, job_id: str, ref: CheckpointRef, scratch: Path) -> TensorDict:
    """Read a whole checkpoint in one process, without a gang.

    Raises:
        CheckpointCorrupt: it is gone or damaged.
    """
    manifest = read_manifest(store, job_id, ref)
    reader = _StoreReader(
        store, checkpoint_prefix(job_id, ref.generation, ref.step), scratch, manifest
    )
    metadata = reader.read_metadata()
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "properties")
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state

