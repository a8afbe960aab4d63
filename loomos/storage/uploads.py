"""Uploads in the store: content-addressed blobs, a listing of them, and whose they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from loomos.errors import InvalidData, InvalidInput, NotFound
from loomos.jobs.uploads import UploadAnswer, UploadedFile, UploadListing, UploadRecord
from loomos.manifest import UPLOAD_SCHEME
from loomos.storage import Store, file_sha256
from loomos.storage.layout import UPLOADS_PREFIX, blob_key, upload_key, uploads_prefix

CHECKED_AT_ONCE = 16
MOST_MISSING = 1000
"""Blobs that one answer asks for."""
LARGEST_LISTING_BYTES = 128 * 1024 * 1024


def make_upload(store: Store, sha256: str, name: str, owner: str) -> UploadAnswer:
    """Make an upload of what was sent, or say what is still to be sent; done twice it is one.

    Raises:
        InvalidInput: the listing is none.
    """
    if not store.exists(blob_key(sha256)):
        return UploadAnswer(missing=[sha256])
    listing = read_listing(store, sha256)
    missing = list(islice(_missing(store, listing), MOST_MISSING))
    if missing:
        return UploadAnswer(missing=missing)
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


def _missing(store: Store, listing: UploadListing) -> Iterator[str]:
    digests = list(dict.fromkeys(blob for file in listing.files for blob in file.blobs))
    with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
        for start in range(0, len(digests), MOST_MISSING):
            some = digests[start : start + MOST_MISSING]
            there = pool.map(lambda digest: store.exists(blob_key(digest)), some)
            yield from (
                digest for digest, is_there in zip(some, there, strict=True) if not is_there
            )


def read_listing(store: Store, sha256: str) -> UploadListing:
    """What an upload holds.

    Raises:
        InvalidInput: there is no such upload, or it is not a listing.
    """
    try:
        content = store.get(blob_key(sha256))
    except NotFound:
        raise InvalidInput(
            f"there is no upload {sha256[:12]}…; `loomos data list` shows yours"
        ) from None
    try:
        listing = UploadListing.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(f"{sha256[:12]}… is no listing of an upload: {first['msg']}") from None
    for file in listing.files:
        if any(part in ("", ".", "..") for part in file.path.split("/")):
            raise InvalidInput(f"{file.path!r} is no path below an upload's folder")
    return listing


def touch_upload(store: Store, sha256: str) -> None:
    """Note that an upload is used, which puts off its end."""
    for item in store.objects(uploads_prefix(sha256)):
        record = UploadRecord.model_validate_json(store.get(item.key))
        used = record.model_copy(update={"uploaded_at": datetime.now(UTC)})
        store.put(item.key, used.model_dump_json().encode())


def list_uploads(store: Store, owner: str | None) -> list[UploadRecord]:
    """Uploads, newest first; those of one owner, or all."""
    found = [
        UploadRecord.model_validate_json(store.get(item.key))
        for item in store.objects(UPLOADS_PREFIX)
    ]
    mine = [record for record in found if owner is None or record.owner == owner]
    return sorted(mine, key=lambda record: record.uploaded_at, reverse=True)


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
        InvalidInput: it is a folder, or there is none.
        InvalidData: what is stored is not what was listed.
    """
    listing = read_listing(store, source.removeprefix(UPLOAD_SCHEME))
    if listing.is_folder or len(listing.files) != 1:
        raise InvalidInput(f"{field}: {source!r} is a folder; upload one file")
    file = listing.files[0]
    content = b"".join(store.get(blob_key(blob)) for blob in file.blobs)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise InvalidData(f"{field}: {file.path} is not what its upload lists; upload it again")
    return content
