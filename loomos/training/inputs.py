"""Pinned inputs, made available on this machine.

Files are fetched into a cache that all ranks of a machine share and that is keyed by digest, so
a file is fetched once whoever asks first.
"""

from __future__ import annotations

import fcntl
import json
import uuid
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from loomos.errors import InvalidData, InvalidModel
from loomos.jobs.training import DataFile, DatasetIndex, Reference, ResolvedInputs
from loomos.manifest import Model
from loomos.retention.local import mark_used
from loomos.settings import StorageSettings
from loomos.storage import Store, file_sha256, open_uri
from loomos.storage.layout import blob_key
from loomos.training import tokenizer as tokenizers
from loomos.training.data import DocumentStream


class InputCache:
    """Local copies of pinned files."""

    def __init__(self, store: Store, settings: StorageSettings, folder: Path) -> None:
        self._store, self._settings, self._folder = store, settings, folder
        folder.mkdir(parents=True, exist_ok=True)

    def data_file(self, file: DataFile) -> Path:
        """A dataset's file, verified."""
        return self._fetch(file.uri, file.sha256, file.name)

    def blob(self, reference: Reference) -> bytes:
        """The content of a pinned file that is a blob in the store, verified."""
        path = self._fetch(
            f"blob:{reference.sha256}", reference.sha256, f"blob {reference.sha256[:12]}"
        )
        return path.read_bytes()

    def dataset(self, reference: Reference) -> DatasetIndex:
        """The index of a dataset."""
        return DatasetIndex.model_validate_json(self._store.get(reference.uri))

    def folder(self, reference: Reference) -> Path:
        """A pinned folder, such as a base model: a listing of blobs, or a commit on the hub."""
        if reference.uri.startswith("hub:"):
            from huggingface_hub import snapshot_download

            name = reference.uri.removeprefix("hub:")
            return Path(snapshot_download(name, revision=reference.sha256))
        target = self._folder / f"folder-{reference.sha256}"
        target.mkdir(exist_ok=True)
        mark_used(target)
        for entry in json.loads(self._store.get(reference.uri))["files"]:
            path = target / entry["name"]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                blob = self._fetch(f"blob:{entry['sha256']}", entry["sha256"], entry["name"])
                _link(path, blob)
        return target

    def _fetch(self, uri: str, sha256: str, name: str) -> Path:
        path = self._folder / sha256
        if path.exists():
            mark_used(path)
            return path
        with (self._folder / f"{sha256}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path
            partial = path.with_suffix(".unverified")
            if uri.startswith("blob:"):
                self._store.get_file(blob_key(uri.removeprefix("blob:")), partial)
            else:
                bucket, _, key = uri.removeprefix("s3://").partition("/")
                open_uri(f"s3://{bucket}", self._settings).get_file(key, partial)
            if file_sha256(partial) != sha256:
                partial.unlink()
                raise InvalidData(f"{name} has changed since the job was resolved; submit it again")
            partial.replace(path)
        return path


def _link(path: Path, blob: Path) -> None:
    """Make a link, whoever makes the same one at the same time."""
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    own.symlink_to(blob)
    own.replace(path)


def model_source(model: Model, inputs: ResolvedInputs, cache: InputCache) -> Path | None:
    """Local folder of the base model; None for `init:`."""
    return None if model.base_model.startswith("init:") else cache.folder(inputs.model)


def load_tokenizer(
    model: Model, inputs: ResolvedInputs, cache: InputCache, trained: str | None
) -> Any:
    """The tokenizer that the manifest names.

    Args:
        model: what the manifest says.
        inputs: what it was pinned to.
        cache: local files.
        trained: JSON of the tokenizer trained for this job, for `bpe:SIZE`.

    Raises:
        InvalidModel: it cannot be loaded or has no end-of-text token.
    """
    if model.tokenizer == "byte":
        return tokenizers.byte_tokenizer()
    if model.tokenizer.startswith("bpe:"):
        assert trained is not None
        return tokenizers.from_json(trained)
    if inputs.tokenizer is not None:
        source: Path | None = cache.folder(inputs.tokenizer)
    else:
        source = model_source(model, inputs, cache)
    try:
        loaded = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InvalidModel(
            f"model.tokenizer {model.tokenizer!r}: {str(error).splitlines()[0]}"
        ) from error
    if loaded.eos_token_id is None:
        raise InvalidModel(f"model.tokenizer {model.tokenizer!r} has no end-of-text token")
    return loaded


BPE_SAMPLE_DOCUMENTS = 5000


def train_tokenizer(model: Model, stream: DocumentStream) -> str:
    """Train the tokenizer of `bpe:SIZE` on the first documents of the stream; returns its JSON."""
    count = min(stream.documents_per_epoch, BPE_SAMPLE_DOCUMENTS)
    texts = ("".join(text for text, _ in stream.read(i).parts) for i in range(count))
    return tokenizers.to_json(
        tokenizers.train_bpe(texts, int(model.tokenizer.removeprefix("bpe:")))
    )
