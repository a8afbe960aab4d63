"""A ledger as static files (C2SP tlog-tiles): for anyone to fetch, mirror and audit.

checkpoint                      signed, with cosignatures
tile/<level>/<tile>[.p/<width>] hashes
tile/entries/<tile>[.p/<width>] entries, each after its length in two bytes
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loomos.errors import InvalidInput
from loomos.loomdb.audit import AuditReport
from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.errors import FormatInvalid, VerificationFailed
from loomos.loomdb.merkle import HASH_BYTES, TILE_HEIGHT, TILE_WIDTH, Tree, leaf_hash
from loomos.loomdb.notes import Note, decode_text
from loomos.loomdb.policies import Policy

if TYPE_CHECKING:
    from loomos.loomdb.database import LoomDB

Progress = Callable[[int, int], None]


def tile_path(kind: str, tile: int, width: int = TILE_WIDTH) -> str:
    """Path of a tile: groups of three digits, all but the last with an x."""
    digits = f"{tile:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    path = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{kind}/{path}{partial}"


async def export_folder(db: LoomDB, folder: Path, progress: Progress) -> int:
    """Write the log up to its newest checkpoint.

    Returns:
        How many entries.

    Raises:
        InvalidInput: the folder is not empty, or nothing has been signed yet.
    """
    _make_empty(folder)
    note = await db.ledger.checkpoint()
    if note is None:
        raise InvalidInput("the ledger has no checkpoint yet; nothing to export")
    size = Checkpoint.parse_text(note.text).size
    tree = Tree()
    for start in range(0, size, TILE_WIDTH):
        width = min(TILE_WIDTH, size - start)
        found = await db.query_events(after=start - 1, limit=width)
        entries = [event.entry.encode() for event in found]
        _write(folder / tile_path("entries", start // TILE_WIDTH, width), _pack(entries))
        tree, full = tree.append([leaf_hash(entry) for entry in entries])
        for tile in full:
            _write(folder / tile_path(str(tile.level), tile.place), tile.hashes)
        progress(start + width, size)
    for level, hashes in enumerate(tree.edge):
        if hashes:
            place = size >> (TILE_HEIGHT * (level + 1))
            path = tile_path(str(level), place, len(hashes))
            _write(folder / path, b"".join(hashes))
    _write(folder / "checkpoint", note.encode().encode())
    return size


def audit_folder(
    folder: Path, policy: Policy, anchors: Sequence[Checkpoint], progress: Progress
) -> AuditReport:
    """Check an exported log from its entries up.

    Raises:
        InvalidInput: the folder holds no log.
    """
    try:
        note = Note.parse(decode_text((folder / "checkpoint").read_bytes(), "the checkpoint"))
        claimed = Checkpoint.parse_text(note.text)
    except OSError as error:
        raise InvalidInput(f"{folder} holds no checkpoint: {error.strerror}") from None
    report = AuditReport()
    roots = [("checkpoint", claimed), *(("known elsewhere", anchor) for anchor in anchors)]
    try:
        policy.verify(note)
    except VerificationFailed as error:
        report.add("checkpoint", claimed.size, claimed.size, f"checkpoint: {error}")
    tree = Tree()
    for tile, entries in _entry_tiles(folder, claimed.size, report):
        leaves = [leaf_hash(entry) for entry in entries]
        _compare_tile(folder, tile, leaves, report)
        for what, known in roots:
            if tree.size < known.size <= tree.size + len(leaves):
                root = tree.append(leaves[: known.size - tree.size])[0].root()
                _compare_root(what, known, root, report)
        tree, full = tree.append(leaves)
        for upper in full:
            if upper.level:
                _compare_upper(folder, upper.level, upper.place, upper.hashes, report)
        progress(tree.size, claimed.size)
    for level, hashes in enumerate(tree.edge):
        if level and hashes and tree.size == claimed.size:
            place = tree.size >> (TILE_HEIGHT * (level + 1))
            _compare_upper(folder, level, place, b"".join(hashes), report)
    for what, known in roots:
        if known.size > tree.size:
            report.add(
                "history",
                tree.size,
                known.size - 1,
                f"{tree.size} entries are here, but a checkpoint of {known.size} ({what}) was "
                "signed",
            )
    report.size, report.root = tree.size, tree.root()
    return report


def _compare_root(what: str, known: Checkpoint, root: bytes, report: AuditReport) -> None:
    if root == known.root:
        report.checkpoints += what == "checkpoint"
        report.signed_size = max(report.signed_size, known.size)
    elif not report.findings:
        report.add(
            "history",
            0,
            known.size - 1,
            f"entries 0 to {known.size - 1} are not those of checkpoint {known.size} ({what})",
        )


def _entry_tiles(folder: Path, size: int, report: AuditReport) -> Iterator[tuple[int, list[bytes]]]:
    for start in range(0, size, TILE_WIDTH):
        width = min(TILE_WIDTH, size - start)
        tile = start // TILE_WIDTH
        path = folder / tile_path("entries", tile, width)
        content = _read(path)
        try:
            if content is None:
                raise FormatInvalid("is missing")
            entries = _unpack(content)
            if len(entries) != width:
                raise FormatInvalid(f"has {len(entries)} entries instead of {width}")
        except FormatInvalid as error:
            report.add("event", start, start + width - 1, f"{path.relative_to(folder)} {error}")
            return
        yield tile, entries


def _compare_tile(folder: Path, tile: int, leaves: list[bytes], report: AuditReport) -> None:
    path = tile_path("0", tile, len(leaves))
    hashes = _read(folder / path)
    if hashes == b"".join(leaves):
        return
    first = tile * TILE_WIDTH
    if hashes is None or len(hashes) != len(leaves) * HASH_BYTES:
        report.add("tile", first, first + len(leaves) - 1, f"{path} is missing or cut")
        return
    for i, leaf in enumerate(leaves):
        if hashes[i * HASH_BYTES : (i + 1) * HASH_BYTES] != leaf:
            report.add(
                "event", first + i, first + i, f"entry {first + i} differs from its hash in {path}"
            )


def _compare_upper(
    folder: Path, level: int, place: int, hashes: bytes, report: AuditReport
) -> None:
    path = tile_path(str(level), place, len(hashes) // HASH_BYTES)
    if _read(folder / path) != hashes:
        span = TILE_WIDTH ** (level + 1)
        message = f"{path} differs from the entries"
        report.add("tile", place * span, (place + 1) * span - 1, message)


def _pack(entries: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def _unpack(content: bytes) -> list[bytes]:
    entries: list[bytes] = []
    place = 0
    while place < len(content):
        if place + 2 > len(content):
            raise FormatInvalid("is cut")
        (length,) = struct.unpack_from(">H", content, place)
        entry = content[place + 2 : place + 2 + length]
        if len(entry) != length:
            raise FormatInvalid("is cut")
        entries.append(entry)
        place += 2 + length
    return entries


def _make_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
