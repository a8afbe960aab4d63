"""Files that people send: written to this machine's disk as they come, as far as there is room."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from loomos.errors import TooLarge, Unavailable
from loomos.quantities import format_bytes

DISK_RESERVE_BYTES = 1024**3
"""What stays free on the disk: the databases of a stack on this machine break without any."""


async def receive(
    pieces: AsyncIterator[bytes], path: Path, most_bytes: int, declared_bytes: int = 0
) -> str:
    """Write what is sent into a file, and give its SHA-256.

    Args:
        pieces: what comes.
        path: the file.
        most_bytes: how large it may become.
        declared_bytes: how large it will be, as far as that is known.

    Raises:
        TooLarge: it is larger.
        Unavailable: the disk has no room for it, nor for its copy in the store.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    _check_room(path.parent, declared_bytes, 2 * declared_bytes, most_bytes)
    with path.open("wb") as file:
        async for piece in pieces:
            size_bytes += len(piece)
            digest.update(piece)
            await asyncio.to_thread(_write, file, piece, size_bytes, path.parent, most_bytes)
    return digest.hexdigest()


def _write(file: BinaryIO, piece: bytes, size_bytes: int, folder: Path, most_bytes: int) -> None:
    _check_room(folder, size_bytes, size_bytes + len(piece), most_bytes)
    file.write(piece)


def _check_room(folder: Path, size_bytes: int, needed_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise TooLarge(
            f"a file may have {format_bytes(most_bytes)} (data.max_upload_bytes); put larger ones "
            "into S3 and name them s3://"
        )
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + DISK_RESERVE_BYTES:
        raise Unavailable(
            f"the gateway's disk has {format_bytes(free)} free, too little for this file and for "
            f"the {format_bytes(DISK_RESERVE_BYTES)} that stay free; delete what nobody needs "
            "there, then send it again"
        )
