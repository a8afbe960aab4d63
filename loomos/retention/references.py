"""What runs and versions read of the store: blobs, and data that updates have learnt from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from loomos.errors import InvalidInput, NotFound
from loomos.jobs.training import DatasetIndex, ResolvedInputs
from loomos.manifest import TrainingSpec, named_paths
from loomos.storage import Store
from loomos.storage.layout import (
    BLOBS_PREFIX,
    ENVIRONMENTS_PREFIX,
    JOBS_PREFIX,
    MODELS_PREFIX,
    UPLOADS_PREFIX,
    VERIFICATIONS_PREFIX,
    blob_key,
    inputs_prefix,
)
from loomos.storage.uploads import read_listing, upload_digest

_BLOB = re.compile(r"^(?:blobs/|blob:)([0-9a-f]{64})$")


def references(store: Store, inputs: Mapping[str, Any]) -> set[str]:
    """Keys of the store that pinned inputs name, directly or by an index.

    Args:
        store: where indexes are.
        inputs: `ResolvedInputs` as JSON has it, such as in the lineage of a version.
    """
    found: set[str] = set()
    for name in ("model", "tokenizer", "training", "validation"):
        reference = inputs.get(name)
        if isinstance(reference, Mapping):
            found |= _expanded(store, str(reference.get("uri", "")))
    rewards = inputs.get("rewards")
    for reference in rewards if isinstance(rewards, list) else []:
        if isinstance(reference, Mapping) and (blob := _BLOB.match(str(reference.get("uri", "")))):
            found.add(blob_key(blob[1]))
    return found


def write_references(
    store: Store, run_id: str, spec: TrainingSpec, inputs: ResolvedInputs
) -> list[str]:
    """Note what a run reads, so that it stays as long as the run's records do.

    Returns:
        Keys that the run needs and the store has lost; empty if all is well.
    """
    needed = references(store, inputs.model_dump(mode="json"))
    keys = set(needed)
    for named in named_paths(TrainingSpec, spec.model_dump(mode="json", exclude_unset=True)):
        if (digest := upload_digest(named.value)) is not None:
            keys |= _uploaded(store, digest)
    content = json.dumps(sorted(keys)).encode()
    store.put(f"{inputs_prefix(run_id)}{hashlib.sha256(content).hexdigest()}.json", content)
    return [key for key in sorted(needed) if not store.exists(key)]


def referenced_keys(store: Store) -> set[str]:
    """Everything below `blobs/` and `continual/` that something refers to."""
    found: set[str] = set()
    for run in store.children(JOBS_PREFIX):
        for item in store.objects(inputs_prefix(run.rstrip("/"))):
            found |= set(json.loads(store.get(item.key)))
    for lineage in _lineages(store):
        found |= references(store, lineage)
    for upload in {item.key.split("/")[1] for item in store.objects(UPLOADS_PREFIX)}:
        found |= _uploaded(store, upload)
    for item in store.objects(VERIFICATIONS_PREFIX):
        if item.key.endswith("/plan.json"):
            plan = json.loads(store.get(item.key))
            found |= {blob_key(suite["sha256"]) for suite in plan["suites"]}
    for item in store.objects(ENVIRONMENTS_PREFIX):
        found.add(blob_key(item.key.removeprefix(ENVIRONMENTS_PREFIX)))
    return found


def _lineages(store: Store) -> Iterator[Mapping[str, Any]]:
    """Inputs in the lineages of all published versions."""
    for model in store.children(MODELS_PREFIX):
        for version in store.children(f"{MODELS_PREFIX}{model}"):
            try:
                manifest = json.loads(store.get(f"{MODELS_PREFIX}{model}{version}manifest.json"))
            except NotFound:
                continue
            inputs = (manifest.get("lineage") or {}).get("inputs")
            if isinstance(inputs, Mapping):
                yield inputs


def _uploaded(store: Store, digest: str) -> set[str]:
    try:
        listing = read_listing(store, digest)
    except InvalidInput:
        return set()
    return {blob_key(digest), *(blob_key(blob) for file in listing.files for blob in file.blobs)}


def _expanded(store: Store, uri: str) -> set[str]:
    """The blob that a reference names, with what its content lists."""
    match = _BLOB.match(uri)
    if match is None:
        return set()
    key = blob_key(match[1])
    try:
        content = store.get(key)
    except NotFound:
        return {key}
    return {key, *_listed(store, content)}


def _listed(store: Store, content: bytes) -> Iterable[str]:
    """Keys that the index of a dataset or the listing of a folder names."""
    try:
        listed = json.loads(content)
        if "documents" in str(listed["files"][0]):
            uris = [file.uri for file in DatasetIndex.model_validate(listed).files]
        else:
            uris = [f"blob:{file['sha256']}" for file in listed["files"]]
    except (ValueError, KeyError, IndexError, TypeError, ValidationError):
        return []
    root = f"{store.url}/"
    found = [blob_key(match[1]) for uri in uris if (match := _BLOB.match(uri))]
    return found + [uri.removeprefix(root) for uri in uris if uri.startswith(root)]


def is_blob(key: str) -> bool:
    """Whether a key is that of a content-addressed input."""
    return key.startswith(BLOBS_PREFIX)
