"""Files that people send take no more of the disk than there is room for."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from api.blobs import DISK_RESERVE_BYTES, receive
from loomos.errors import TooLarge, Unavailable


class Sender:
    """Sends pieces, and counts them."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.left:
            self.left -= 1
            yield b"x" * 10


async def test_a_file_is_written_as_it_comes(tmp_path: Path) -> None:
    digest = await receive(aiter(Sender(3)), tmp_path / "f", 30)
    assert digest == hashlib.sha256(b"x" * 30).hexdigest()
    assert (tmp_path / "f").read_bytes() == b"x" * 30


async def test_a_file_beyond_the_bound_is_refused_as_it_comes(tmp_path: Path) -> None:
    sender = Sender(100)
    with pytest.raises(TooLarge, match=r"data\.max_upload_bytes"):
        await receive(aiter(sender), tmp_path / "f", 30)
    assert sender.left == 96
    with pytest.raises(TooLarge):
        await receive(aiter(sender), tmp_path / "f", 30, declared_bytes=31)
    assert sender.left == 96


async def test_a_file_never_takes_the_last_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=DISK_RESERVE_BYTES + 45)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    sender = Sender(100)
    with pytest.raises(Unavailable, match="free, too little for this file"):
        await receive(aiter(sender), tmp_path / "f", 10**6)
    assert (tmp_path / "f").stat().st_size == 30
    with pytest.raises(Unavailable, match="then send it again"):
        await receive(aiter(sender), tmp_path / "f", 10**6, declared_bytes=23)
