"""Auditing a ledger: every byte is hashed again and compared with what was signed.

An audit needs no trust in the database. What differs is located: to the row or tile where the
database still holds a second copy of the truth, else to the range between two signed checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, text

from loomos.loomdb.checkpoints import Checkpoint, open_checkpoint
from loomos.loomdb.errors import VerificationFailed
from loomos.loomdb.events import entry_tail
from loomos.loomdb.merkle import (
    HASH_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    Tree,
    root_of,
)
from loomos.loomdb.notes import Note, Signature, VerifierKey, verify_note
from loomos.loomdb.policies import Policy

TILES_AT_ONCE = 16
MOST_FINDINGS = 1000
"""After so many findings an audit need not go on."""

Where = Literal["event", "tile", "checkpoint", "cosignature", "head", "history"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was signed."""

    where: Where
    """What kind of thing."""
    first: int
    """First position concerned; a tile's first leaf; a checkpoint's size."""
    last: int
    """Last position concerned."""
    message: str
    """What is wrong."""


@dataclass
class AuditReport:
    """What an audit found."""

    size: int = 0
    """Events that were hashed."""
    root: bytes = b""
    """Root over them."""
    signed_size: int = 0
    """Size of the newest checkpoint whose signature and root hold."""
    checkpoints: int = 0
    """Checkpoints whose signature and root hold."""
    findings: list[Finding] = field(default_factory=list)
    """Empty if all is well."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def add(self, where: Where, first: int, last: int, message: str) -> None:
        """Note a finding."""
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(where, first, last, message))


Row = tuple[int, str, str, int, str, int, int, str, bytes]
_ROWS = text(
    "SELECT position, event_id, stream, version, event_type, schema, time_us, entry, leaf "
    "FROM events WHERE position >= :low AND position < :high ORDER BY position"
)
_BEYOND = text("SELECT position FROM events WHERE position >= :size OR position < 0")


def audit(
    connection: Connection,
    policy: Policy | None,
    anchors: Sequence[Checkpoint] = (),
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> AuditReport:
    """Check everything the database holds of the ledger.

    Args:
        connection: all is read in one transaction.
        policy: the log's keys, and the witnesses whose cosignatures are checked; without one,
            checkpoints are compared unverified.
        anchors: checkpoints known from elsewhere, such as a witness: the log must extend them.
        progress: called with entries hashed and entries in all.
    """
    return _Audit(connection, policy, anchors, progress).run()


class _Audit:
    def __init__(
        self,
        connection: Connection,
        policy: Policy | None,
        anchors: Sequence[Checkpoint],
        progress: Callable[[int, int], None],
    ) -> None:
        self._connection = connection
        self._policy = policy
        self._progress = progress
        self._report = AuditReport()
        self._signed: dict[int, list[tuple[str, bytes]]] = {}
        self._anchors = anchors
        self._versions: dict[str, int] = {}
        self._good_size = 0

    def run(self) -> AuditReport:
        size = self._head()
        self._read_checkpoints()
        for anchor in self._anchors:
            self._signed.setdefault(anchor.size, []).append(("known elsewhere", anchor.root))
        tree = Tree()
        for block in self._blocks(size):
            tree = self._block(tree, block)
            self._progress(min(tree.size, size), size)
        self._report.size, self._report.root = tree.size, tree.root()
        self._check_upper_tiles(size)
        self._check_beyond(size)
        for signed in sorted(s for s in self._signed if s > size):
            what = ", ".join(sorted({name for name, _ in self._signed[signed]}))
            self._report.add(
                "history",
                size,
                signed - 1,
                f"the log has {size} entries, but a checkpoint of {signed} ({what}) was signed: "
                "it was truncated or restored from an older backup",
            )
        return self._report

    # --- what was signed ---

    def _head(self) -> int:
        row = self._connection.execute(text("SELECT size FROM head WHERE id = 1")).one_or_none()
        there = self._connection.execute(text("SELECT max(position) FROM events")).scalar()
        size = 0 if there is None else int(there) + 1
        if row is None:
            self._report.add("head", 0, size, "the head is missing")
            return size
        return int(row[0])

    def _read_checkpoints(self) -> None:
        keys = None if self._policy is None else [m.key for m in self._policy.logs]
        rows = self._connection.execute(text("SELECT size, note FROM checkpoints ORDER BY size"))
        for size, encoded in rows:
            try:
                checkpoint = _verified(encoded, keys)
                if checkpoint.size != size:
                    raise VerificationFailed(f"it is one of size {checkpoint.size}")
            except VerificationFailed as error:
                self._report.add("checkpoint", size, size, f"checkpoint {size}: {error}")
            else:
                self._signed.setdefault(size, []).append(("checkpoint", checkpoint.root))
        if self._policy is not None:
            self._read_cosignatures(self._policy)

    def _read_cosignatures(self, policy: Policy) -> None:
        keys = {f"{w.key.name}+{w.key.key_id.hex()}": w.key for w in policy.witnesses.values()}
        rows = self._connection.execute(
            text(
                "SELECT c.size, c.key, c.line, p.note FROM cosignatures c "
                "LEFT JOIN checkpoints p ON p.size = c.size ORDER BY c.size"
            )
        )
        for size, name, line, encoded in rows:
            if name not in keys:
                continue
            try:
                if encoded is None:
                    raise VerificationFailed("its checkpoint is missing")
                note = Note.parse(encoded)
                signature = Signature.parse(line.rstrip("\n"))
                verify_note(Note(note.text, (signature,)), [keys[name]])
            except VerificationFailed as error:
                self._report.add(
                    "cosignature", size, size, f"cosignature of {name} on {size}: {error}"
                )

    # --- entries ---

    def _blocks(self, size: int) -> Iterator[tuple[int, int, list[Row], Any]]:
        """Per level-0 tile: its first and last position, its rows, its tile."""
        step = TILES_AT_ONCE * TILE_WIDTH
        for low in range(0, size, step):
            high = min(low + step, size)
            rows = self._rows(low, high)
            is_dense = len(rows) == high - low and rows[0][0] == low and rows[-1][0] == high - 1
            tiles = {tile.place: tile for tile in self._tiles(0, low, high)}
            for start in range(low, high, TILE_WIDTH):
                end = min(start + TILE_WIDTH, high)
                if is_dense:
                    inside = rows[start - low : end - low]
                else:
                    inside = [row for row in rows if start <= row[0] < end]
                yield start, end, inside, tiles.get(start >> TILE_HEIGHT)

    def _rows(self, low: int, high: int) -> list[Row]:
        result = self._connection.execute(_ROWS, {"low": low, "high": high})
        # The driver's own tuples: half of an audit's time would go into nicer ones.
        found: Any = result.cursor.fetchall() if result.cursor else result.all()
        result.close()
        return list(map(tuple, found)) if found and type(found[0]) is not tuple else list(found)

    def _tiles(self, level: int, low: int, high: int) -> Iterator[Tile]:
        """Tiles of a level whose hashes are numbers `low` to `high` of that level."""
        rows = self._connection.execute(
            text(
                "SELECT tile, hashes, root FROM tiles WHERE level = :level "
                "AND tile >= :first AND tile < :last ORDER BY tile"
            ),
            {
                "level": level,
                "first": low >> TILE_HEIGHT,
                "last": (high + TILE_WIDTH - 1) >> TILE_HEIGHT,
            },
        )
        for tile, hashes, root in rows:
            yield Tile(level, tile, bytes(hashes), bytes(root))

    def _block(self, tree: Tree, block: tuple[int, int, list[Row], Tile | None]) -> Tree:
        start, end, rows, tile = block
        is_full = end - start == TILE_WIDTH
        sha256 = hashlib.sha256
        hashes = [sha256(b"\x00" + row[7].encode()).digest() for row in rows]
        grown, made = tree.append(hashes)
        intact = (
            len(rows) == end - start
            and rows[0][0] == start
            and rows[-1][0] == end - 1
            and hashes == [row[8] for row in rows]
            and all(_tails_fit(rows))
            and (not is_full or made[0] == tile)
        )
        if not intact:
            hashes = self._locate(start, end, rows, hashes, tile)
            grown, _ = tree.append(hashes)
        self._check_versions(rows)
        if not is_full and tile is not None:
            self._report.add("tile", start, end - 1, f"tile 0/{tile.place} is there too early")
        for size in [s for s in range(start + 1, end + 1) if s in self._signed]:
            self._check_root(tree.append(hashes[: size - start])[0])
        return grown

    def _check_versions(self, rows: Sequence[Row]) -> None:
        versions = self._versions
        for row in rows:
            stream, version = row[2], row[3]
            wanted = versions.get(stream, 0) + 1
            if version != wanted:
                self._report.add(
                    "event",
                    row[0],
                    row[0],
                    f"event {row[0]} has version {version} of stream {stream!r}; by its place it "
                    f"is {wanted}",
                )
                version = max(version, wanted)
            versions[stream] = version

    def _locate(
        self, start: int, end: int, rows: Sequence[Row], hashes: list[bytes], tile: Tile | None
    ) -> list[bytes]:
        """Say what is wrong in a block; returns its most credible leaf hashes."""
        report = self._report
        there = {row[0]: (row, leaf) for row, leaf in zip(rows, hashes, strict=True)}
        is_full = end - start == TILE_WIDTH
        in_tile: dict[int, bytes] = {}
        if is_full:
            if tile is None:
                report.add("tile", start, end - 1, f"tile 0/{start >> TILE_HEIGHT} is missing")
            elif len(tile.hashes) != TILE_WIDTH * HASH_BYTES:
                report.add("tile", start, end - 1, f"tile 0/{tile.place} has a wrong length")
            else:
                in_tile = {
                    start + i: tile.hashes[i * HASH_BYTES : (i + 1) * HASH_BYTES]
                    for i in range(TILE_WIDTH)
                }
        credible: list[bytes] = []
        for position in range(start, end):
            known = in_tile.get(position)
            if position not in there:
                report.add("event", position, position, f"event {position} is missing")
                credible.append(known or bytes(HASH_BYTES))
                continue
            row, leaf = there[position]
            credible.append(self._locate_in_row(row, leaf, known))
        if in_tile and tile is not None and tile.root != root_of(credible):
            report.add("tile", start, end - 1, f"tile 0/{tile.place} has a wrong root")
        return credible

    def _locate_in_row(self, row: Row, leaf: bytes, known: bytes | None) -> bytes:
        position, stored = row[0], row[8]
        add = self._report.add
        if leaf == stored:
            if known is not None and known != leaf:
                add("event", position, position, f"event {position} differs from the tile above it")
            elif not row[7].endswith(entry_tail(row[1], row[5], row[2], row[6], row[4])):
                add("event", position, position, f"columns of event {position} were changed")
            return leaf
        if known == leaf:
            add("event", position, position, f"the leaf hash of event {position} was changed")
            return leaf
        add("event", position, position, f"the entry of event {position} was changed")
        return stored if known is None else known

    def _check_root(self, tree: Tree) -> None:
        """Compare with every signed root of this size."""
        root = tree.root()
        held = True
        for what, signed in self._signed[tree.size]:
            if signed == root:
                self._report.checkpoints += what == "checkpoint"
                continue
            held = False
            first, last = self._good_size, tree.size - 1
            if not any(first <= f.first <= last for f in self._report.findings):
                self._report.add(
                    "history",
                    first,
                    last,
                    f"events {first} to {last} are not those of checkpoint {tree.size} ({what})",
                )
        if held:
            self._good_size = self._report.signed_size = tree.size

    # --- what should not be there, or should ---

    def _check_upper_tiles(self, size: int) -> None:
        """Tiles above level 0 hold the roots of those below, and there are no others."""
        level = 0
        while True:
            below = {tile.place: tile.root for tile in self._all_tiles(level)}
            full = size >> (TILE_HEIGHT * (level + 1))
            span = 1 << (TILE_HEIGHT * (level + 1))
            for place in sorted(p for p in below if not 0 <= p < full):
                if level or place << TILE_HEIGHT >= size or place < 0:
                    self._report.add(
                        "tile",
                        place * span,
                        (place + 1) * span - 1,
                        f"tile {level}/{place} is extra",
                    )
            above = {tile.place: tile for tile in self._all_tiles(level + 1)}
            for place in range(full >> TILE_HEIGHT):
                wanted = [below.get(p) for p in range(place * TILE_WIDTH, (place + 1) * TILE_WIDTH)]
                self._check_upper_tile(level + 1, place, wanted, above.get(place))
            if not above and full == 0:
                return
            level += 1

    def _check_upper_tile(
        self, level: int, place: int, below: Sequence[bytes | None], tile: Tile | None
    ) -> None:
        span = 1 << (TILE_HEIGHT * (level + 1))
        first, last = place * span, (place + 1) * span - 1
        name = f"tile {level}/{place}"
        if tile is None:
            self._report.add("tile", first, last, f"{name} is missing")
        elif None not in below:
            hashes = [h for h in below if h is not None]
            if tile.hashes != b"".join(hashes) or tile.root != root_of(hashes):
                self._report.add("tile", first, last, f"{name} differs from the tiles below it")

    def _all_tiles(self, level: int) -> Iterator[Tile]:
        rows = self._connection.execute(
            text("SELECT tile, hashes, root FROM tiles WHERE level = :level ORDER BY tile"),
            {"level": level},
        )
        for tile, hashes, root in rows:
            yield Tile(level, tile, bytes(hashes) if level else b"", bytes(root))

    def _check_beyond(self, size: int) -> None:
        for (position,) in self._connection.execute(_BEYOND, {"size": size}):
            self._report.add(
                "event",
                position,
                position,
                f"event {position} is outside the log, which has {size} entries",
            )


def _tails_fit(rows: Sequence[Row]) -> Iterator[bool]:
    """Per row, whether its entry ends as its columns say: `entry_tail`, without the calls."""
    tails = [
        f',"id":"{event_id}","schema":{schema},"stream":"{stream}","time":{time_us},'
        f'"type":"{event_type}"}}'
        for _, event_id, stream, _, event_type, schema, time_us, _, _ in rows
    ]
    return map(str.endswith, [row[7] for row in rows], tails)


def _verified(encoded: str, keys: Sequence[VerifierKey] | None) -> Checkpoint:
    if keys is None:
        return Checkpoint.parse_text(Note.parse(encoded).text)
    failure: VerificationFailed | None = None
    for key in keys:
        try:
            return open_checkpoint(encoded, key)[0]
        except VerificationFailed as error:
            failure = error
    raise failure or VerificationFailed("the policy names no log")
