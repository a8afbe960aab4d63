"""Sweeping what processes leave on their own machines: caches, scratch, logs."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Removed(NamedTuple):
    """What was removed."""

    files: int
    """Files."""
    size_bytes: int
    """Their size."""


def sweep_folder(folder: Path, older_than_s: float, keep: Iterable[Path] = ()) -> Removed:
    """Remove what lies in a folder and was last used long ago, entry by entry.

    A file that is in use, open or mapped, stays readable to whoever has it open.

    Args:
        folder: where to look; each entry, a file or a folder, goes or stays as a whole.
        older_than_s: seconds since any file of the entry was written or read through `mark_used`.
        keep: entries that stay whatever their age.
    """
    kept = {path.absolute() for path in keep}
    files = size = 0
    for entry in _entries(folder):
        if entry.absolute() in kept or time.time() - _last_used(entry) < older_than_s:
            continue
        for path in _files(entry):
            with contextlib.suppress(OSError):
                size += path.stat().st_size
                files += 1
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return Removed(files, size)


def mark_used(path: Path) -> None:
    """Note that a cached file or folder is used, so that it stays."""
    with contextlib.suppress(OSError):
        os.utime(path)


def rotate(log: Path, most_bytes: int, kept: int) -> bool:
    """Move the content of a log that is too long aside; its writers go on at its new beginning.

    Writers append (`O_APPEND`), so they need not be told. What they write between the copy and the
    cut is lost; that is an instant once in `most_bytes`.

    Args:
        log: the file.
        most_bytes: length from which it is rotated.
        kept: older pieces that stay, as `NAME.1` (the newest), `NAME.2`, ...

    Returns:
        Whether it was rotated.
    """
    try:
        if log.stat().st_size < most_bytes:
            return False
        for number in range(kept, 1, -1):
            older = log.with_name(f"{log.name}.{number - 1}")
            if older.exists():
                older.replace(log.with_name(f"{log.name}.{number}"))
        if kept:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)
    except OSError:  # a full disk must not end whoever rotates; cut without keeping
        with contextlib.suppress(OSError):
            os.truncate(log, 0)
    return True


def rotate_all(folder: Path, most_bytes: int, kept: int) -> None:
    """Rotate every `*.log` of a folder that is too long."""
    for log in folder.glob("*.log"):
        rotate(log, most_bytes, kept)


def disk_bytes(path: Path) -> int:
    """What a file or folder takes of the disk; what vanishes meanwhile counts nothing."""
    total = 0
    for file in _files(path):
        with contextlib.suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _files(entry: Path) -> Iterable[Path]:
    if entry.is_symlink() or not entry.is_dir():
        return [entry]
    return (path for path in entry.rglob("*") if path.is_symlink() or not path.is_dir())


def _last_used(entry: Path) -> float:
    """When any part of an entry was last written; now, if it vanishes."""
    newest = 0.0
    for path in (entry, *_files(entry)):
        try:
            newest = max(newest, path.lstat().st_mtime)
        except OSError:
            return time.time()
    return newest
