"""A checkpoint in the store: torch DCP's shards, committed by a manifest.

A checkpoint exists if and only if its `manifest.json` exists. The manifest is written last and
lists every shard with size and SHA-256. Each rank writes its shards to scratch, uploads them and
passes their digests to the coordinator along DCP's own collective; the coordinator commits.

Only tensors go into DCP; all else is JSON in the manifest. DCP's own metadata file is a pickle and
is opened only after its digest has been checked against the manifest.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.storage import WriteResult

from loomos.errors import AttemptFailed, CheckpointCorrupt, NotFound
from loomos.jobs.message import Message
from loomos.jobs.training import CheckpointRef
from loomos.storage import Store, file_sha256
from loomos.storage.layout import checkpoint_prefix
from loomos.training.fences import is_fenced

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
    progress: dict[str, Any] = Field(default_factory=dict)
    """Counters of the loop: JSON, no tensors."""
    validation_loss: float | None = None
    """Validation loss at this step, if it was measured here."""
    shards: list[Shard] = Field(default_factory=list)
    """Every file, DCP's metadata included."""


def own_prefix(rank: int) -> str:
    """How the names of tensors begin that a rank keeps for itself, of sizes that may change."""
    return f"rank.{rank}."


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


@dataclass
class _HashedStorageInfo(_StorageInfo):
    """DCP's record of where a tensor is, with the digest of its file."""

    sha256: str = ""
    file_bytes: int = 0


class StoreWriter(FileSystemWriter):
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


class StoreReader(FileSystemReader):
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

    def own_tensors(self, rank: int) -> TensorDict:
        """Tensors to load what one rank keeps for itself into, whatever size it has."""
        return {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in self.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and key.startswith(own_prefix(rank))
        }

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


def read_tensors(store: Store, job_id: str, ref: CheckpointRef, scratch: Path) -> TensorDict:
    """Read a whole checkpoint in one process, without a gang.

    Raises:
        CheckpointCorrupt: it is gone or damaged.
    """
    manifest = read_manifest(store, job_id, ref)
    reader = StoreReader(
        store, checkpoint_prefix(job_id, ref.generation, ref.step), scratch, manifest
    )
    metadata = reader.read_metadata()
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        # It warns that there is no process group, which is the point here.
        warnings.simplefilter("ignore", UserWarning)
        dcp_load(state, storage_reader=reader, no_dist=True)
    return state
