"""Pinning inputs: from what a manifest names to digests, with the bytes where every node gets them.

Uploads are blobs already. Local files, of folders that may be read for others, are copied into the
store as blobs named by their digest. S3 objects stay where they are and are verified when fetched.
Hub models are pinned to a commit.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from loomos.errors import InvalidData, InvalidInput, InvalidModel, NotFound
from loomos.jobs.training import DataFile, DatasetIndex, Reference, ResolvedInputs
from loomos.local_files import (
    KNOWN_SUFFIXES,
    Reach,
    data_files,
    is_model_file,
    is_wanted,
    model_files,
)
from loomos.manifest import Data, Model, RewardFunction, TrainingSpec, is_explicit
from loomos.quantities import format_bytes
from loomos.registry import Registry, VersionManifest
from loomos.settings import StorageSettings
from loomos.storage import Store, file_sha256, open_store, open_uri
from loomos.storage.layout import blob_key
from loomos.storage.uploads import fetch_uploaded, read_listing, touch_upload, upload_digest
from loomos.training.data import DocumentFile, document_offsets

PINNED_AT_ONCE = 16
"""Files that are hashed and copied at the same time."""

CONTINUAL_DATA = re.compile(r"continual/[a-z0-9.-]+/data/[0-9a-f]{64}\.jsonl")
"""Keys of what continual learning has put together; see `loomos.storage.layout`."""

HUB_TRIES, HUB_TIMEOUT_S, HUB_WAIT_S = 5, 10.0, 1.0
"""How often the hub is asked, how long it may take, and the first wait, which doubles."""

RECORD_SHAPES = {"dpo": "preference"}
"""Of algorithms that read records of one shape only."""

LONGEST_CODE_BYTES = 1_000_000
"""Of a reward function's file."""

MOST_MODEL_FILES, MOST_MODEL_BYTES = 2000, 2**40
"""Of a folder in S3 that is a model: the largest have some hundred files and a few hundred GiB."""

DISK_RESERVE_BYTES = 1024**3
"""What downloads leave free on the disk of this process, which others need too."""

NEW_POLICY = "init:policy"
"""Where a policy comes from that starts from nothing."""


class _Found(NamedTuple):
    """A file of a dataset before it is pinned."""

    name: str
    path: Path | None
    """Where it is on this machine; None for one in a store, of which a copy is looked at."""
    uri: str
    """Where it stays, as `DataFile` says it; empty for what becomes a blob."""
    download: Callable[[], Path]
    """Fetches it into a temporary file."""


class _Sources(NamedTuple):
    """Where inputs come from."""

    store: Store
    settings: StorageSettings
    reach: Reach | None
    progress: Callable[[str], None]

    def open(self, text: str, field: str) -> Path:
        """A path on this machine, if it may be read for whoever named it."""
        return Path(text) if self.reach is None else self.reach.open(text, field)


def resolve(
    spec: TrainingSpec,
    settings: StorageSettings,
    progress: Callable[[str], None],
    reach: Reach | None = None,
) -> ResolvedInputs:
    """Pin model, tokenizer and data.

    Args:
        spec: what the manifest says.
        settings: the store, and the credentials for other buckets.
        progress: called with a few words now and then.
        reach: which paths of this machine the manifest may name. Default: whatever this process
            may read, which is right only where its own user wrote the manifest.

    Raises:
        InvalidData: the dataset is missing, empty or not of the shape it claims.
        InvalidModel: the base model or tokenizer is missing.
    """
    if spec.model is None:
        if spec.policy is None:
            return ResolvedInputs(
                model=_digested(NEW_POLICY, spec.acting.model_dump()),
                training=_pin_environment(spec),
                code=version("loomos"),
            )
        store = open_store(settings)
        return ResolvedInputs(
            model=pin_version(spec.policy, "policy", store),
            training=_pin_environment(spec),
            code=version("loomos"),
            base_version=_base_version(spec.policy, "policy", store),
        )
    store = open_store(settings)
    sources = _Sources(store, settings, reach, progress)
    if spec.data is None:
        return ResolvedInputs(
            model=_pin_model(spec.model.base_model, "model.base_model", sources),
            tokenizer=_pin_tokenizer(spec.model, sources),
            training=_pin_environment(spec),
            code=version("loomos"),
            base_version=_base_version(spec.model.base_model, "model.base_model", store),
        )
    data, validation = spec.data, spec.data.validation_dataset
    if spec.algorithm in RECORD_SHAPES or spec.rewards:
        shape = RECORD_SHAPES.get(spec.algorithm, "prompt")
        data = data.model_copy(update={"format": shape})
    return ResolvedInputs(
        model=_pin_model(spec.model.base_model, "model.base_model", sources),
        tokenizer=_pin_tokenizer(spec.model, sources),
        training=_pin_dataset(data.training_dataset, "data.training_dataset", data, sources),
        validation=(
            None
            if validation is None
            else _pin_dataset(validation, "data.validation_dataset", data, sources)
        ),
        code=version("loomos"),
        base_version=_base_version(spec.model.base_model, "model.base_model", store),
        rewards=[
            _pin_code(reward, f"rewards.{number}.file", sources)
            for number, reward in enumerate(spec.rewards)
        ],
    )


def _pin_code(reward: RewardFunction, field: str, sources: _Sources) -> Reference | None:
    """The file of a reward function, as a blob; read once to see that it has the function."""
    if reward.file is None:
        return None
    data = Data(training_dataset=reward.file, include=["*.py"])
    found = list(_find_files(reward.file, field, data, sources))
    if len(found) != 1:
        raise InvalidInput(f"{field}: {reward.file!r} must be one Python file")
    path = found[0].path or found[0].download()
    try:
        code = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{field}: {reward.file!r} cannot be read: {error.strerror}") from error
    finally:
        if found[0].path is None:
            path.unlink(missing_ok=True)
    check_code(code, reward)
    return _put_blob(sources.store, code, len(code))


def check_code(code: bytes, reward: RewardFunction) -> None:
    """See, without running it, that a file is Python and defines the function.

    Raises:
        InvalidInput: it is not, or does not; names the line or the functions that there are.
    """
    if len(code) > LONGEST_CODE_BYTES:
        raise InvalidInput(f"rewards: {reward.file!r} is longer than {LONGEST_CODE_BYTES} bytes")
    try:
        tree = ast.parse(code, filename=reward.file or "")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInput(f"rewards: {reward.file!r} is not Python: {error}") from None
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if reward.function not in names:
        known = ", ".join(sorted(names)) or "none"
        raise InvalidInput(
            f"rewards: {reward.file!r} defines no function {reward.function!r} (there are: {known})"
        )


def _pin_environment(spec: TrainingSpec) -> Reference:
    """An environment is code of a version, with settings."""
    assert spec.environment is not None
    environment = {**spec.environment.model_dump(), "gymnasium": version("gymnasium")}
    return _digested(f"environment:{spec.environment.name}", environment)


def _digested(uri: str, content: dict[str, Any]) -> Reference:
    text = json.dumps(content, sort_keys=True)
    return Reference(uri=uri, sha256=hashlib.sha256(text.encode()).hexdigest())


# --- data ---------------------------------------------------------------------------------------


def _pin_dataset(source: str, field: str, data: Data, sources: _Sources) -> Reference:
    store = sources.store

    def pin(found: _Found) -> DataFile:
        sources.progress(f"pinning {found.name}")
        return _pin_file(found, data, store)

    with ThreadPoolExecutor(PINNED_AT_ONCE) as pool:
        files = list(pool.map(pin, _find_files(source, field, data, sources)))
    if not sum(file.documents for file in files):
        wanted = ", ".join(data.include or sorted(KNOWN_SUFFIXES))
        raise InvalidData(f"no documents in {source!r}; looked for {wanted}")
    index = DatasetIndex(source=source, files=files)
    return _put_blob(store, index.model_dump_json().encode(), sum(f.size_bytes for f in files))


def _pin_file(found: _Found, data: Data, store: Store) -> DataFile:
    """Look at one file, and copy it into the store if nothing else holds it."""
    _check_name(found.name)
    path = found.path or found.download()
    try:
        digest = file_sha256(path)
        documents = len(document_offsets(path, found.name)) - 1
        if documents:
            DocumentFile(path, found.name, data.format, data.text_field).read(0)
        if not found.uri and not store.exists(blob_key(digest)):
            store.put_file(blob_key(digest), path)
        return DataFile(
            name=found.name,
            uri=found.uri or f"blob:{digest}",
            sha256=digest,
            size_bytes=path.stat().st_size,
            documents=documents,
        )
    except OSError as error:
        raise InvalidData(f"{found.name} cannot be read: {error.strerror}") from error
    finally:
        if not found.path:
            path.unlink(missing_ok=True)


def _check_name(name: str) -> None:
    """Raise `InvalidData` for a name that cannot be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidData(
            f"the file name {os.fsencode(name)!r} is not UTF-8; rename the file, or leave it out "
            "with data.exclude"
        ) from None


def _find_files(source: str, field: str, data: Data, sources: _Sources) -> Iterator[_Found]:
    if source.startswith("s3://"):
        yield from _find_s3(source, field, data, sources)
        return
    if (upload := upload_digest(source)) is not None:
        yield from _find_uploaded(upload, data, sources.store)
        return
    root = _own_file(source, sources.store) or sources.open(source.removeprefix("file://"), field)
    if root.is_file():
        yield _Found(root.name, root, "", lambda: root)
        return
    if not root.is_dir():
        raise InvalidData(
            f"{field}: {source!r} does not exist where the control worker runs; submit it with "
            "the CLI or the SDK where it is, or use s3://"
        )
    for name, path in data_files(root, data.include, data.exclude, sources.reach):
        yield _Found(name, path, "", Path)


def _own_file(source: str, store: Store) -> Path | None:
    """A dataset that LoomOS itself keeps in a store that is a folder; None for anything else."""
    key = source.removeprefix("file://").removeprefix(f"{store.url.removeprefix('file://')}/")
    if not store.url.startswith("file://") or not CONTINUAL_DATA.fullmatch(key):
        return None
    return Path(store.url.removeprefix("file://")) / key


def _find_uploaded(sha256: str, data: Data, store: Store) -> Iterator[_Found]:
    listing = read_listing(store, sha256)
    touch_upload(store, sha256)
    for file in listing.files:
        wanted = not listing.is_folder or is_wanted(file.path, data.include, data.exclude)
        if wanted and file.size_bytes:
            fetch = partial(_temporary, partial(fetch_uploaded, store, file))
            yield _Found(file.path, None, "", fetch)


def _temporary(fill: Callable[[Path], None]) -> Path:
    """A new temporary file, filled."""
    handle, name = tempfile.mkstemp(prefix="loomos-pin-")
    os.close(handle)
    try:
        fill(Path(name))
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _find_s3(source: str, field: str, data: Data, sources: _Sources) -> Iterator[_Found]:
    store, prefix = _open_bucket(source, field, sources)
    for item in store.objects(prefix):
        name = item.key.removeprefix(prefix).lstrip("/") or item.key.rpartition("/")[2]
        if item.size_bytes and (item.key == prefix or is_wanted(name, data.include, data.exclude)):
            if not _has_room(item.size_bytes):
                raise InvalidData(f"{field}: {name} of {source!r} {_too_large(item.size_bytes)}")
            fetch = partial(_temporary, partial(store.get_file, item.key))
            yield _Found(name, None, f"{store.url}/{item.key}", fetch)


def _open_bucket(source: str, field: str, sources: _Sources) -> tuple[Store, str]:
    """The bucket that `s3://BUCKET/PREFIX` names, and the prefix.

    Raises:
        InvalidData: it is in the store of LoomOS itself, which holds what belongs to others. Only
            what continual learning has put together may be named there.
    """
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    store = open_uri(f"s3://{bucket}", sources.settings)
    place, own = f"{store.url}/{prefix}", f"{sources.store.url}/"
    is_own = place.startswith(own) or own.startswith(place)
    if is_own and not CONTINUAL_DATA.fullmatch(place.removeprefix(own)):
        raise InvalidData(
            f"{field}: {source!r} is in the store of LoomOS itself, which holds other people's "
            "data; upload what you need, name model:NAME, or use another bucket"
        )
    return store, prefix


def _has_room(size_bytes: int) -> bool:
    return shutil.disk_usage(tempfile.gettempdir()).free >= size_bytes + DISK_RESERVE_BYTES


def _too_large(size_bytes: int) -> str:
    return (
        f"has {format_bytes(size_bytes)}, for which the control worker's disk has no room; free "
        "some, or name smaller files"
    )


# --- models -------------------------------------------------------------------------------------


def _base_version(source: str, field: str, store: Store) -> str:
    """`NAME@VERSION` of a registered version; empty for any other."""
    if not source.startswith("model:"):
        return ""
    found = _registered(source, field, store)
    return f"{found.name}@{found.version}"


def _pin_tokenizer(model: Model, sources: _Sources) -> Reference | None:
    if model.tokenizer in ("base", "byte") or model.tokenizer.startswith("bpe:"):
        return None
    return _pin_model(model.tokenizer, "model.tokenizer", sources)


def _pin_model(source: str, field: str, sources: _Sources) -> Reference:
    if source.startswith("init:"):
        return Reference(uri=source, sha256=hashlib.sha256(source.encode()).hexdigest())
    if source.startswith("model:"):
        return pin_version(source, field, sources.store)
    if source.startswith("s3://"):
        with tempfile.TemporaryDirectory() as folder:
            _download_model(source, field, Path(folder), sources)
            return _pin_folder(source, field, Path(folder), sources)
    if (upload := upload_digest(source)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            _fetch_upload(upload, Path(folder), sources.store)
            return _pin_folder(source, field, Path(folder), sources)
    if is_explicit(source) or source.startswith("file://"):
        folder_path = sources.open(source.removeprefix("file://"), field)
        if not folder_path.is_dir():
            raise InvalidModel(f"{field} {source!r} does not exist where the control worker runs")
        return _pin_folder(source, field, folder_path, sources)
    return _pin_hub(source, field, sources.progress)


def _fetch_upload(sha256: str, folder: Path, store: Store) -> None:
    listing = read_listing(store, sha256)
    touch_upload(store, sha256)
    for file in listing.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        fetch_uploaded(store, file, target)


def _registered(source: str, field: str, store: Store) -> VersionManifest:
    """The version that `model:NAME[@ALIAS or VERSION]` names."""
    try:
        return Registry(store).manifest(source.removeprefix("model:"))
    except (NotFound, InvalidInput) as error:
        raise InvalidModel(f"{field} {source!r}: write model:NAME@VERSION; {error}") from None


def pin_version(source: str, field: str, store: Store) -> Reference:
    """The files of `model:NAME@VERSION`, as blobs that any node can fetch.

    Raises:
        InvalidModel: there is no such version; names the field.
    """
    found = _registered(source, field, store)
    name, wanted = found.name, found.version
    prefix = f"models/{name}/{wanted}/"
    manifest = json.loads(store.get(f"{prefix}manifest.json"))
    files = [
        {"name": file, "sha256": facts["sha256"]}
        for file, facts in sorted(manifest["files"].items())
        if not file.startswith("adapter/")
    ]
    for file in files:
        if not store.exists(blob_key(file["sha256"])):
            store.copy(prefix + file["name"], blob_key(file["sha256"]))
    return _put_blob(store, json.dumps({"files": files}).encode(), manifest["size_bytes"])


def _download_model(source: str, field: str, folder: Path, sources: _Sources) -> None:
    """Copy the files of a model or tokenizer that lie directly below a prefix of a bucket.

    Raises:
        InvalidModel: it is none, or has more files or bytes than a model or this disk has.
    """
    store, prefix = _open_bucket(source, field, sources)
    below = f"{prefix.strip('/')}/".lstrip("/")
    names = [name for name in store.children(below) if is_model_file(name)]
    if not names or (field == "model.base_model" and "config.json" not in names):
        wanted = "config.json" if field == "model.base_model" else "files of a tokenizer"
        raise InvalidModel(f"{field} {source!r} has no {wanted}; name a transformers folder")
    if len(names) > MOST_MODEL_FILES:
        raise InvalidModel(
            f"{field} {source!r} has {len(names):,} files, and a model may have "
            f"{MOST_MODEL_FILES:,}; name a folder that holds one model"
        )
    size_bytes = sum(store.size_bytes(below + name) or 0 for name in names)
    if size_bytes > MOST_MODEL_BYTES:
        raise InvalidModel(
            f"{field} {source!r} has {format_bytes(size_bytes)}, and a model may have "
            f"{format_bytes(MOST_MODEL_BYTES)}; name a folder that holds one model"
        )
    if not _has_room(size_bytes):
        raise InvalidModel(f"{field} {source!r} {_too_large(size_bytes)}")
    for name in names:
        sources.progress(f"fetching {name}")
        store.get_file(below + name, folder / name)


def _pin_folder(source: str, field: str, folder: Path, sources: _Sources) -> Reference:
    if not (folder / "config.json").exists() and field == "model.base_model":
        raise InvalidModel(f"{field} {source!r} has no config.json; name a transformers folder")
    store = sources.store
    files: list[dict[str, str]] = []
    size_bytes = 0
    for name, path in model_files(folder):
        if path.is_symlink():  # of a fetched folder nothing is
            sources.open(str(path), field)
        sources.progress(f"pinning {name}")
        digest = file_sha256(path)
        if not store.exists(blob_key(digest)):
            store.put_file(blob_key(digest), path)
        files.append({"name": name, "sha256": digest})
        size_bytes += path.stat().st_size
    return _put_blob(store, json.dumps({"files": files}).encode(), size_bytes)


def _pin_hub(source: str, field: str, progress: Callable[[str], None]) -> Reference:
    """The newest commit of a model on the hub, which is asked a few times if it is away.

    Raises:
        InvalidModel: it has no such model, or does not answer; says what to do.
    """
    from huggingface_hub import constants, errors, model_info

    # That of the HTTP library beneath, which has changed its name before.
    unreachable = getattr(errors, "HTTPError", OSError)
    hub = constants.ENDPOINT
    for attempt in range(1, HUB_TRIES + 1):
        try:
            commit = model_info(source, timeout=HUB_TIMEOUT_S).sha
            return Reference(uri=f"hub:{source}", sha256=str(commit))
        except errors.OfflineModeIsEnabled as error:
            raise InvalidModel(
                f"{field} {source!r} is no local folder, and HF_HUB_OFFLINE forbids to ask the "
                "hub; give a folder or s3://BUCKET/PREFIX, or unset it for the control worker"
            ) from error
        except (errors.HFValidationError, unreachable, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            why = f"{type(error).__name__}" + (f", HTTP {status}" if status else "")
            if isinstance(error, errors.HFValidationError) or (status or 500) < 429:
                raise InvalidModel(
                    f"{field} {source!r} is no local folder and the hub {hub} does not give it: "
                    f"{why}"
                ) from error
            progress(f"the hub {hub} does not answer ({why}), try {attempt} of {HUB_TRIES}")
            last = why
            time.sleep(HUB_WAIT_S * 2 ** (attempt - 1) if attempt < HUB_TRIES else 0)
    raise InvalidModel(
        f"{field} {source!r} is no local folder, and the hub {hub} did not answer {HUB_TRIES} "
        f"times ({last}). Where the control worker runs, set HF_ENDPOINT to a mirror that it can "
        "reach, or copy the model and give its folder or s3://BUCKET/PREFIX"
    )


def _put_blob(store: Store, content: bytes, size_bytes: int) -> Reference:
    digest = hashlib.sha256(content).hexdigest()
    store.put_if_absent(blob_key(digest), content)
    return Reference(uri=blob_key(digest), sha256=digest, size_bytes=size_bytes)
