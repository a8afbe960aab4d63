"""Messages about files that people upload to train and test on."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated

from pydantic import Field

from loomos.jobs.message import Message

Sha256 = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]

PART_BYTES = 16 * 1024 * 1024
"""Longer files travel, and wait in the store, in parts of this size: what has arrived of a file
is not sent again."""

MOST_FILES = 200_000
"""Files of one upload."""
DEEPEST_PATH = 64
"""Folders within each other, the file's name included: no tree of data is deeper."""
MOST_SMALL_PARTS, SMALL_PART_BYTES = 1000, 1024 * 1024
"""Parts that a file may have beyond one for each MiB: each is a question to the store."""
MOST_LISTED = 1000
"""Uploads in one answer."""


class UploadedFile(Message):
    """One file of an upload."""

    path: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^/\x00][^\x00]*$")]
    """Path below the folder, or the file's name."""
    sha256: Sha256
    """Digest of the content."""
    size_bytes: Annotated[int, Field(ge=0)]
    """Size of the content."""
    parts: list[Sha256] = []
    """Digests of its parts in their order; none for a file that travels whole."""

    @property
    def blobs(self) -> list[str]:
        """Digests under which the store holds it."""
        return list(self.parts) or [self.sha256]


class UploadListing(Message):
    """What an upload holds. Its digest is the upload's name, so the same files are one upload."""

    is_folder: bool
    """Whether a folder was uploaded, or one file."""
    files: Annotated[list[UploadedFile], Field(min_length=1, max_length=MOST_FILES)]
    """Its files, sorted by path."""

    def encode(self) -> bytes:
        """As the store holds it."""
        return self.model_dump_json(exclude_defaults=True).encode()

    @property
    def sha256(self) -> str:
        """Digest that names the upload."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)


class UploadRequest(Message):
    """Makes an upload of blobs that were sent, its listing among them."""

    sha256: Sha256
    """Digest of the listing."""
    name: Annotated[str, Field(min_length=1, max_length=255)]
    """What people call it, such as the folder's name."""


class UploadRecord(Message):
    """An upload of a person."""

    sha256: Sha256
    """Digest of its listing; documents name it `upload:SHA256`."""
    name: str
    """What people call it."""
    owner: str
    """Whose it is."""
    files: int
    """Its files."""
    size_bytes: int
    """Size of all files."""
    uploaded_at: datetime
    """When it was uploaded, or last named by a document."""

    @property
    def reference(self) -> str:
        """How documents name it."""
        return f"upload:{self.sha256}"


class UploadAnswer(Message):
    """What became of a request to make an upload."""

    missing: list[Sha256] = []
    """Blobs to send first; more may be missing after these."""
    upload: UploadRecord | None = None
    """The upload, once nothing is missing."""


class UploadList(Message):
    """Uploads."""

    uploads: list[UploadRecord]
    """Newest first."""
