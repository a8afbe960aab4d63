"""Artifacts: named blobs in S3 or on a local disk, behind one small interface.

Every method is blocking and safe to call from threads. A key is a `/`-separated path below the
store's root. Calls wait through an outage of the server of up to `PATIENCE_S` before they raise
`Unavailable`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from loomos.errors import InvalidInput
from loomos.settings import StorageSettings

__all__ = ["ObjectInfo", "Store", "file_sha256", "open_store", "open_uri"]


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object in a listing."""

    key: str
    """Its key below the store's root."""
    size_bytes: int
    """Its size."""
    modified_at: datetime
    """When it was written."""


class Store(Protocol):
    """What LoomOS asks of an object store."""

    url: str
    """URL of the root."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless one is there; say whether the object now holds `data`."""

    def put_file(self, key: str, path: Path) -> None:
        """Write a file's content, in parts when it is large."""

    def get(self, key: str) -> bytes:
        """Read an object; raises `NotFound`."""

    def stream(self, key: str) -> Iterator[bytes]:
        """Read an object piece by piece; raises `NotFound` before the first."""

    def get_file(self, key: str, path: Path) -> None:
        """Read an object into a file that appears whole or not at all; raises `NotFound`."""

    def copy(self, source: str, target: str) -> None:
        """Write an object's content under another key as well; raises `NotFound`.

        The bytes go through no process of ours, however many they are.
        """

    def exists(self, key: str) -> bool:
        """Say whether there is such an object."""

    def size_bytes(self, key: str) -> int | None:
        """Size of an object; None if there is none."""

    def objects(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix` and sorts after `after`, in key order."""

    def children(self, prefix: str, after: str = "") -> list[str]:
        """Names directly below `prefix` (which ends in `/`), sorted, folders ending in `/`.

        Those only that sort after `after`; the others cost nothing.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; keys that are not there are no error."""


def open_store(settings: StorageSettings) -> Store:
    """Open the store that the settings name.

    Raises:
        InvalidInput: `storage.url` is neither s3:// nor file://.
    """
    return open_uri(settings.url, settings)


def open_uri(url: str, settings: StorageSettings) -> Store:
    """Open the store whose root is `url`, with the credentials of `settings`."""
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        from loomos.storage._s3 import S3Store

        return S3Store(parts.netloc, parts.path.strip("/"), settings)
    if parts.scheme == "file" and parts.path:
        from loomos.storage._local import LocalStore

        return LocalStore(Path(parts.path))
    raise InvalidInput(f"storage.url {url!r} is not usable; write s3://bucket or file:///folder")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
