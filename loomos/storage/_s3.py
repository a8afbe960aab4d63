"""A store in an S3 bucket, by boto3."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from loomos.errors import NotFound, Unavailable
from loomos.settings import StorageSettings
from loomos.storage import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        ListObjectsV2OutputTypeDef,
        ListObjectsV2RequestTypeDef,
    )

PATIENCE_S = 60.0
"""How long a call waits through an outage of the server."""

_PART_BYTES = 64 * 1024 * 1024
_TRANSFER = TransferConfig(
    multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4
)
_ABSENT = {"404", "NoSuchKey", "NotFound", "NoSuchBucket"}
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412"}

T = TypeVar("T")

_SESSION = boto3.session.Session()
"""Shared, for it holds the description of S3, whose reading takes 80 ms; a client then takes 4."""
_MAKING = threading.Lock()


def _client(settings: StorageSettings) -> S3Client:
    """A client of its own connections; safe to call from threads, unlike the session."""
    with _MAKING:
        return _SESSION.client(
            "s3",
            endpoint_url=settings.endpoint,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=(
                settings.secret_key.get_secret_value() if settings.secret_key else None
            ),
            region_name=settings.region,
            config=Config(
                s3={"addressing_style": "path" if settings.endpoint else "auto"},
                retries={"mode": "standard", "max_attempts": 2},
                connect_timeout=2,
                read_timeout=30,
                # SeaweedFS and older S3 servers do not know the newer trailing checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def preload() -> None:
    """Read what every client needs, once for all processes that this one will fork."""
    nobody = {"access_key": "none", "secret_key": SecretStr("none")}
    _client(StorageSettings(url="s3://none", endpoint="http://127.0.0.1:1", **nobody))


class S3Store:
    """Objects below `prefix` in `bucket`."""

    def __init__(self, bucket: str, prefix: str, settings: StorageSettings) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client = _client(settings)

    def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        self._patiently(
            key,
            lambda: self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data),
        )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Store.put_if_absent`."""
        tries = 0

        def attempt() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=self.prefix + key, Body=data, IfNoneMatch="*"
                )
            except ClientError as error:
                if error.response["Error"]["Code"] not in _TAKEN:
                    raise
                return False
            return True

        if self._patiently(key, attempt):
            return True
        if self.get(key) != data:
            return False
        if tries > 1:
            # The second try sees the object of the first, whose answer was lost. A server that
            # failed half-way may have the object and not list it: written again, it is whole.
            self.put(key, data)
        return True

    def put_file(self, key: str, path: Path) -> None:
        """See `Store.put_file`."""
        self._patiently(
            key,
            lambda: self._client.upload_file(
                str(path), self.bucket, self.prefix + key, Config=_TRANSFER
            ),
        )

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self._patiently(
            key,
            lambda: self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)[
                "Body"
            ].read(),
        )

    def stream(self, key: str) -> Iterator[bytes]:
        """See `Store.stream`."""
        body = self._patiently(
            key, lambda: self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"]
        )
        return body.iter_chunks(1024 * 1024)

    def get_file(self, key: str, path: Path) -> None:
        """See `Store.get_file`."""
        partial = path.with_name(f".partial-{uuid.uuid4().hex}")
        try:
            self._patiently(
                key,
                lambda: self._client.download_file(
                    self.bucket, self.prefix + key, str(partial), Config=_TRANSFER
                ),
            )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def copy(self, source: str, target: str) -> None:
        """See `Store.copy`."""
        self._patiently(
            source,
            lambda: self._client.copy(
                {"Bucket": self.bucket, "Key": self.prefix + source},
                self.bucket,
                self.prefix + target,
                Config=_TRANSFER,
            ),
        )

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self.size_bytes(key) is not None

    def size_bytes(self, key: str) -> int | None:
        """See `Store.size_bytes`."""
        try:
            found = self._patiently(
                key, lambda: self._client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            )
        except NotFound:
            return None
        return found["ContentLength"]

    def objects(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """See `Store.objects`."""
        for page in self._pages(prefix, StartAfter=self.prefix + after if after else ""):
            for item in page.get("Contents", []):
                yield ObjectInfo(
                    key=item["Key"].removeprefix(self.prefix),
                    size_bytes=item["Size"],
                    modified_at=item["LastModified"],
                )

    def _pages(self, prefix: str, **options: str) -> Iterator[ListObjectsV2OutputTypeDef]:
        """Pages of a listing; a page that was lost to an outage is asked for again."""
        wanted: ListObjectsV2RequestTypeDef = {
            "Bucket": self.bucket,
            "Prefix": self.prefix + prefix,
        }
        wanted.update({k: v for k, v in options.items() if v})  # type: ignore[typeddict-item]
        while True:
            page = self._patiently(prefix, lambda: self._client.list_objects_v2(**wanted))
            yield page
            if "NextContinuationToken" not in page:
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def children(self, prefix: str, after: str = "") -> list[str]:
        """See `Store.children`."""
        names: set[str] = set()
        root = self.prefix + prefix
        start = root + after if after else ""
        for page in self._pages(prefix, Delimiter="/", StartAfter=start):
            names |= {p["Prefix"].removeprefix(root) for p in page.get("CommonPrefixes", [])}
            names |= {o["Key"].removeprefix(root) for o in page.get("Contents", [])}
        return sorted(name for name in names if name > after)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`."""
        for start in range(0, len(keys), 1000):
            batch = [{"Key": self.prefix + key} for key in keys[start : start + 1000]]
            self._patiently(
                keys[start],
                lambda batch=batch: self._client.delete_objects(  # type: ignore[misc]
                    Bucket=self.bucket,
                    Delete={"Objects": batch, "Quiet": True},
                ),
            )

    def _patiently(self, key: str, call: Callable[[], T]) -> T:
        """Run `call`, trying again while the server is away; every call here is idempotent."""
        deadline = time.monotonic() + PATIENCE_S
        delay_s = 0.1
        while True:
            try:
                return call()
            except (ClientError, BotoCoreError, S3UploadFailedError, OSError) as error:
                code, status = _code_of(error)
                if code in _ABSENT:
                    raise NotFound(f"no object {key!r} in {self.url}") from None
                if status is not None and status < 500 and status != 429:
                    raise Unavailable(
                        f"S3 refused {key!r} in {self.url}: {code}; check storage.access_key, "
                        f"storage.secret_key and the bucket"
                    ) from error
                if time.monotonic() + delay_s > deadline:
                    raise Unavailable(f"S3 at {self.url} cannot be reached: {error}") from error
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, 1.0)


def _code_of(error: Exception) -> tuple[str, int | None]:
    """S3 error code and HTTP status; no status when the server never answered."""
    cause = error.__context__ if isinstance(error, S3UploadFailedError) else error
    if not isinstance(cause, ClientError):
        return type(error).__name__, None
    response = cause.response
    return response["Error"].get("Code", "?"), response["ResponseMetadata"].get("HTTPStatusCode")
