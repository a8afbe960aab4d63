"""The tree in the database: its right edge, and proofs at any size.

Full tiles are rows of `tiles`. Hashes of a tile that is not full yet are the leaves of `events`
(level 0) or the roots of the full tiles below. Full tiles never change, so they are cached.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, select, text

from loomos.loomdb.errors import ProofInvalid
from loomos.loomdb.merkle import (
    EMPTY_ROOT,
    TILE_HEIGHT,
    TILE_WIDTH,
    Node,
    Tree,
    consistency_spans,
    fold,
    inclusion_spans,
    nodes_of,
    tile_rows,
)
from loomos.loomdb.schema import events, tiles

_TILE = text("SELECT hashes FROM tiles WHERE level = :level AND tile = :tile")
CACHED_TILES = 512
"""About 16 MB."""


def load_tree(connection: Connection, size: int) -> Tree:
    """The right edge of the tree over the first `size` events."""
    edge: list[tuple[bytes, ...]] = []
    level = 0
    while size >> (level * TILE_HEIGHT):
        full = size >> ((level + 1) * TILE_HEIGHT)
        count = (size >> (level * TILE_HEIGHT)) & (TILE_WIDTH - 1)
        hashes = _partial_tile(connection, level, full, count)
        if len(hashes) != count:
            raise ProofInvalid(
                f"{count - len(hashes)} hashes of level {level}, tile {full} are missing; "
                "`loomos ledger audit` locates what was removed"
            )
        edge.append(tuple(hashes))
        level += 1
    return Tree(size, tuple(edge))


def _partial_tile(connection: Connection, level: int, tile: int, count: int) -> Sequence[bytes]:
    """The first `count` hashes of a tile."""
    if count == 0:
        return []
    start = tile << TILE_HEIGHT
    if level == 0:
        query = (
            select(events.c.leaf)
            .where(events.c.position >= start, events.c.position < start + count)
            .order_by(events.c.position)
        )
    else:
        query = (
            select(tiles.c.root)
            .where(tiles.c.level == level - 1, tiles.c.tile >= start, tiles.c.tile < start + count)
            .order_by(tiles.c.tile)
        )
    return [bytes(value) for value in (connection.execute(query)).scalars()]


class Prover:
    """Makes proofs; keeps full tiles, expanded, between them."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[int, int], list[list[bytes]]] = OrderedDict()
        self._edge: dict[tuple[int, int], list[list[bytes]]] = {}

    def root(self, connection: Connection, size: int) -> bytes:
        """Root of the tree over the first `size` events."""
        if size == 0:
            return EMPTY_ROOT
        (root,) = self._roots(connection, [(0, size)])
        return root

    def inclusion(self, connection: Connection, index: int, size: int) -> tuple[bytes, ...]:
        """Proof that event `index` is in the tree over the first `size` events.

        Raises:
            ProofInvalid: it is not, or hashes are missing.
        """
        return self._roots(connection, inclusion_spans(index, size))

    def consistency(self, connection: Connection, old: int, new: int) -> tuple[bytes, ...]:
        """Proof that the tree over the first `old` events is a prefix of that over `new`.

        Raises:
            ProofInvalid: the sizes make no sense, or hashes are missing.
        """
        return self._roots(connection, consistency_spans(old, new))

    def _roots(self, connection: Connection, spans: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        pieces = [nodes_of(span) for span in spans]
        hashes = self._hashes(connection, [node for piece in pieces for node in piece])
        return tuple(fold(piece, hashes) for piece in pieces)

    def _hashes(self, connection: Connection, nodes: Iterable[Node]) -> dict[Node, bytes]:
        wanted: dict[tuple[int, int], list[Node]] = {}
        for node in nodes:
            level, height = divmod(node.level, TILE_HEIGHT)
            wanted.setdefault((level, (node.place << height) >> TILE_HEIGHT), []).append(node)
        self._fetch(connection, wanted)
        found: dict[Node, bytes] = {}
        for key, inside in wanted.items():
            rows = self._cache.get(key) or self._unfinished(connection, key, inside)
            for node in inside:
                height = node.level % TILE_HEIGHT
                row = rows[height]
                place = node.place & ((TILE_WIDTH >> height) - 1)
                if place >= len(row):
                    raise ProofInvalid(f"the hash of {node} is missing; run `loomos ledger audit`")
                found[node] = row[place]
        return found

    def _fetch(self, connection: Connection, keys: Iterable[tuple[int, int]]) -> None:
        """Put those of the tiles that are full into the cache."""
        missing = []
        for key in keys:
            if key in self._cache:
                self._cache.move_to_end(key)
            elif key not in self._edge:
                missing.append(key)
        for level, tile in missing:
            hashes = connection.execute(_TILE, {"level": level, "tile": tile}).scalar()
            if hashes is not None:
                self._cache[level, tile] = _expand(list(tile_rows(bytes(hashes))))
        while len(self._cache) > CACHED_TILES:
            self._cache.popitem(last=False)

    def _unfinished(
        self, connection: Connection, key: tuple[int, int], inside: Sequence[Node]
    ) -> list[list[bytes]]:
        """The rows of a tile that is not full, as far as these nodes need them."""
        level, tile = key
        first = tile << TILE_HEIGHT
        count = 0
        for node in inside:
            height = node.level % TILE_HEIGHT
            count = max(count, ((node.place + 1) << height) - first)
        rows = self._edge.get(key)
        if rows is None or len(rows[0]) < count:
            rows = _expand(list(_partial_tile(connection, level, tile, count)))
            # What it has stays; when it is full it is read from its own row.
            self._edge = {key: rows, **{k: r for k, r in self._edge.items() if k[0] != level}}
        return rows


def _expand(hashes: list[bytes]) -> list[list[bytes]]:
    """The complete nodes over a row of hashes, a list per height."""
    sha256 = hashlib.sha256
    rows = [hashes]
    while len(rows[-1]) > 1 and len(rows) < TILE_HEIGHT:
        row = rows[-1]
        pairs = zip(row[::2], row[1::2], strict=False)
        rows.append([sha256(b"\x01" + left + right).digest() for left, right in pairs])
    rows += [[] for _ in range(TILE_HEIGHT - len(rows))]
    return rows
