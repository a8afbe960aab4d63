"""Uploads in the store: content-addressed blobs, a listing of them, and whose they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path

from pydantic import ValidationError

from loomos.errors import InvalidData, InvalidInput, NotFound
from loomos.jobs.uploads import (
    DEEPEST_PATH,
    MOST_LISTED,
    MOST_SMALL_PARTS,
    SMALL_PART_BYTES,
    UploadAnswer,
    UploadedFile,
    UploadListing,
    UploadRecord,
)
from loomos.manifest import UPLOAD_SCHEME
from loomos.quantities import format_bytes
from loomos.storage import Store, file_sha256
from loomos.storage.layout import (
    UPLOAD_USES_PREFIX,
    UPLOADS_PREFIX,
    blob_key,
    upload_key,
    upload_use_key,
    uploads_prefix,
)

CHECKED_AT_ONCE = 16
MOST_MISSING = 1000
"""Blobs that one answer asks for."""
LARGEST_LISTING_BYTES = 48 * 1024 * 1024
LARGEST_FILE_READ_BYTES = 64 * 1024 * 1024
"""Files of uploads that are read whole, such as suites."""


def make_upload(
    store: Store, sha256: str, name: str, owner: str, most_bytes: int | None = None
) -> UploadAnswer:
    """Make an upload of what was sent, or say what is still to be sent; done twice it is one.

    Args:
        store: where to.
        sha256: digest of the listing.
        name: what people call it.
        owner: whose it is.
        most_bytes: size of all its files that is still accepted.

    Raises:
        InvalidInput: the listing is none, or of too much, or says other sizes than were sent.
    """
    if not store.exists(blob_key(sha256)):
        return UploadAnswer(missing=[sha256])
    listing = read_listing(store, sha256)
    if most_bytes is not None and listing.size_bytes > most_bytes:
        raise InvalidInput(
            f"{name} has {format_bytes(listing.size_bytes)}, and an upload may have "
            f"{format_bytes(most_bytes)} (data.max_upload_bytes); put it into S3 and name it s3://"
        )
    sizes: dict[str, int] = {}
    missing = list(islice(_missing(store, listing, sizes), MOST_MISSING))
    if missing:
        return UploadAnswer(missing=missing)
    _check_sizes(listing, sizes)
    record = UploadRecord(
        sha256=sha256,
        name=name,
        owner=owner,
        files=len(listing.files),
        size_bytes=listing.size_bytes,
        uploaded_at=datetime.now(UTC),
    )
    store.put(upload_key(sha256, owner), record.model_dump_json().encode())
    return UploadAnswer(upload=record)


def _missing(store: Store, listing: UploadListing, sizes: dict[str, int]) -> Iterator[str]:
    """Blobs that are not there; notes the sizes of the others."""
    digests = list(dict.fromkeys(blob for file in listing.files for blob in file.blobs))
    with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
        for start in range(0, len(digests), MOST_MISSING):
            some = digests[start : start + MOST_MISSING]
            found = pool.map(lambda digest: store.size_bytes(blob_key(digest)), some)
            for digest, size in zip(some, found, strict=True):
                if size is None:
                    yield digest
                else:
                    sizes[digest] = size


def _check_sizes(listing: UploadListing, sizes: Mapping[str, int]) -> None:
    """The bytes that were sent are those that the listing says, by which it was let in."""
    for file in listing.files:
        size = sum(sizes[blob] for blob in file.blobs)
        if size != file.size_bytes:
            raise InvalidInput(
                f"{file.path[:100]!r} has {size:,} bytes, and its upload lists "
                f"{file.size_bytes:,}; list what was sent"
            )


def read_listing(store: Store, sha256: str) -> UploadListing:
    """What an upload holds.

    Raises:
        InvalidInput: there is no such upload, or it is not a listing.
    """
    try:
        content = _read(store, sha256, LARGEST_LISTING_BYTES)
    except NotFound:
        raise InvalidInput(
            f"there is no upload {sha256[:12]}…; `loomos data list` shows yours"
        ) from None
    try:
        listing = UploadListing.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(f"{sha256[:12]}… is no listing of an upload: {first['msg']}") from None
    _check_paths(listing)
    _check_parts(listing)
    return listing


def _read(store: Store, sha256: str, most_bytes: int) -> bytes:
    """A blob that must be small: whoever asks may have named any blob of the store."""
    key = blob_key(sha256)
    info = next((item for item in store.objects(key) if item.key == key), None)
    if info is None:
        raise NotFound(f"no blob {sha256}")
    if info.size_bytes > most_bytes:
        raise InvalidInput(
            f"{sha256[:12]}… has {format_bytes(info.size_bytes)}, at most "
            f"{format_bytes(most_bytes)} are read here"
        )
    return store.get(key)


def _check_paths(listing: UploadListing) -> None:
    """Paths lie below the folder, differ, and none is a folder of another."""
    paths = sorted(path_below(file.path) for file in listing.files)
    for before, path in pairwise(paths):  # what lies below a file would follow it
        if before == path:
            raise InvalidInput("a path is there twice in the listing of an upload")
        if path[: len(before)] == before:
            name = "/".join(path)[:100]
            raise InvalidInput(f"{name!r} lies below what is a file in the same upload")


def path_below(path: str) -> list[str]:
    """The parts of a path that stays below a folder.

    Raises:
        InvalidInput: it leads elsewhere, or no file could have it.
    """
    parts = path.split("/", DEEPEST_PATH)
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts[:DEEPEST_PATH]):
        raise InvalidInput(f"{path[:100]!r} is no path below an upload's folder")
    if len(parts) > DEEPEST_PATH:
        raise InvalidInput(f"{path[:100]!r} has more than {DEEPEST_PATH} parts; make it flatter")
    return parts


def _check_parts(listing: UploadListing) -> None:
    for file in listing.files:
        most = MOST_SMALL_PARTS + file.size_bytes // SMALL_PART_BYTES
        if len(file.parts) > most:
            raise InvalidInput(
                f"{file.path[:100]!r} has {len(file.parts):,} parts, and may have {most:,} with "
                f"its {format_bytes(file.size_bytes)}; send it in larger ones"
            )


def touch_upload(store: Store, sha256: str) -> None:
    """Note that an upload is used, which puts off its end."""
    store.put(upload_use_key(sha256), b"")


def list_uploads(store: Store, owner: str | None) -> list[UploadRecord]:
    """The `MOST_LISTED` newest uploads, newest first; those of one owner, or all."""
    items = [
        item
        for item in store.objects(UPLOADS_PREFIX)
        if owner is None or item.key.endswith(upload_key("", owner).rpartition("/")[2])
    ]
    uses = {
        item.key.removeprefix(UPLOAD_USES_PREFIX): item.modified_at
        for item in store.objects(UPLOAD_USES_PREFIX)
    }

    def used_at(sha256: str, since: datetime) -> datetime:
        return max(since, uses.get(sha256, since))

    items.sort(key=lambda item: used_at(item.key.split("/")[1], item.modified_at), reverse=True)
    found: list[UploadRecord] = []
    for item in items[:MOST_LISTED]:
        with suppress(NotFound):  # forgotten meanwhile
            record = UploadRecord.model_validate_json(store.get(item.key))
            used = used_at(record.sha256, record.uploaded_at)
            found.append(record.model_copy(update={"uploaded_at": used}))
    return sorted(found, key=lambda record: record.uploaded_at, reverse=True)


def forget_upload(store: Store, sha256: str, owner: str | None) -> None:
    """Forget an upload of one owner, or of all; garbage collection frees what nobody needs.

    Raises:
        NotFound: the owner has no such upload.
    """
    keys = [item.key for item in store.objects(uploads_prefix(sha256))]
    doomed = [key for key in keys if owner is None or key == upload_key(sha256, owner)]
    if not doomed:
        raise NotFound(f"there is no upload {sha256[:12]}… of yours; `loomos data list` shows them")
    store.delete(doomed)


def upload_digest(source: str) -> str | None:
    """The digest in `upload:SHA256`; None for anything else."""
    return source.removeprefix(UPLOAD_SCHEME) if source.startswith(UPLOAD_SCHEME) else None


def fetch_uploaded(store: Store, file: UploadedFile, target: Path) -> None:
    """Write an uploaded file, put together from its parts, into `target`.

    Raises:
        InvalidData: what is stored is not what was listed.
    """
    if not file.parts:
        store.get_file(blob_key(file.sha256), target)
    else:
        with target.open("wb") as whole:
            for part in file.parts:
                for piece in store.stream(blob_key(part)):
                    whole.write(piece)
    if file_sha256(target) != file.sha256:
        raise InvalidData(f"{file.path} is not what its upload lists; upload it again")


def read_uploaded(store: Store, source: str, field: str) -> bytes:
    """The content of an upload of one small file, such as a suite.

    Raises:
        InvalidInput: it is a folder, or too long, or there is none.
        InvalidData: what is stored is not what was listed.
    """
    listing = read_listing(store, source.removeprefix(UPLOAD_SCHEME))
    if listing.is_folder or len(listing.files) != 1:
        raise InvalidInput(f"{field}: {source!r} is a folder; upload one file")
    file = listing.files[0]
    if file.size_bytes > LARGEST_FILE_READ_BYTES:
        raise InvalidInput(
            f"{field}: {file.path[:100]!r} has {format_bytes(file.size_bytes)}, at most "
            f"{format_bytes(LARGEST_FILE_READ_BYTES)} are read here"
        )
    content = b""
    for blob in file.blobs:
        content += _read(store, blob, LARGEST_FILE_READ_BYTES - len(content))
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise InvalidData(f"{field}: {file.path} is not what its upload lists; upload it again")
    return content
