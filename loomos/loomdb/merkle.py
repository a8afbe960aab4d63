"""The Merkle tree of RFC 6962 (RFC 9162 section 2.1), SHA-256: hashing, proofs, their checks.

Pure. A tree over n leaves is cut into *tiles* of 256 hashes, as C2SP tlog-tiles lays them out:
tile `t` of level `l` holds the roots of the 256 full tiles below it, and at level 0 leaf hashes.
`Tree` is the right edge of a growing tree; it is a value, so that a failed commit changes nothing.

Size 0: its root is SHA-256 of nothing (RFC 6962). A consistency proof from size 0 says nothing, so
`verify_consistency` refuses it as transparency-dev/merkle does; who starts from nothing (a witness
that meets a log for the first time) must say so by not calling it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loomos.loomdb.errors import ProofInvalid

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
EMPTY_ROOT = hashlib.sha256(b"").digest()
LARGEST_SIZE = 1 << 63
"""Sizes at or above it are refused: they cannot be meant."""

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    """Hash of an entry as a leaf."""
    return _sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return _sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Root over hashes of equally high subtrees, the last of which may be lower."""
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        paired = [
            _sha256(b"\x01" + left + right).digest()
            for left, right in zip(row[::2], row[1::2], strict=False)
        ]
        if len(row) % 2:
            paired.append(row[-1])
        row = paired
    return row[0]


class Node(NamedTuple):
    """A complete subtree: it spans leaves `[place << level, (place + 1) << level)`."""

    level: int
    place: int


class Tile(NamedTuple):
    """256 hashes and the root over them."""

    level: int
    place: int
    hashes: bytes
    root: bytes


@dataclass(frozen=True)
class Tree:
    """The right edge of a tree: per tile level, the hashes that fill no tile yet."""

    size: int = 0
    """Leaves."""
    edge: tuple[tuple[bytes, ...], ...] = ()
    """`edge[l]` has 0 to 255 hashes: `(size // 256**l) % 256` of them."""

    def root(self) -> bytes:
        """Root hash of the whole."""
        rest: bytes | None = None
        for hashes in self.edge:
            row = (*hashes, rest) if rest is not None else hashes
            if row:
                rest = root_of(row)
        return EMPTY_ROOT if rest is None else rest

    def append(self, leaves: Sequence[bytes]) -> tuple[Tree, list[Tile]]:
        """The tree with more leaves (their hashes), and the tiles that they completed."""
        edge = [list(hashes) for hashes in self.edge]
        full: list[Tile] = []
        added: Sequence[bytes] = leaves
        level, start = 0, self.size
        while added:
            if level == len(edge):
                edge.append([])
            row = edge[level]
            row.extend(added)
            index = start >> TILE_HEIGHT
            roots: list[bytes] = []
            while len(row) >= TILE_WIDTH:
                hashes = row[:TILE_WIDTH]
                del row[:TILE_WIDTH]
                root = root_of(hashes)
                full.append(Tile(level, index + len(roots), b"".join(hashes), root))
                roots.append(root)
            level, start, added = level + 1, index, roots
        return Tree(self.size + len(leaves), tuple(map(tuple, edge))), full


# --- which hashes a proof needs -------------------------------------------------------------------


def inclusion_spans(index: int, size: int) -> list[tuple[int, int]]:
    """Leaf ranges whose roots prove leaf `index` in a tree of `size`, from the leaf upwards."""
    if not 0 <= index < size:
        raise ProofInvalid(f"no leaf {index} in a tree of {size}")
    spans: list[tuple[int, int]] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low = middle
    return spans[::-1]


def consistency_spans(old: int, new: int) -> list[tuple[int, int]]:
    """Leaf ranges whose roots prove that a tree of `old` is a prefix of one of `new` leaves."""
    if not 0 < old <= new:
        raise ProofInvalid(f"no consistency proof from size {old} to {new}")
    spans: list[tuple[int, int]] = []
    low, high = 0, new
    whole = True
    while old < high:
        middle = low + _split(high - low)
        if old <= middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low, whole = middle, False
    if not whole:
        spans.append((low, high))
    return spans[::-1]


def nodes_of(span: tuple[int, int]) -> list[Node]:
    """The complete subtrees that make up a leaf range of a proof, from left to right."""
    low, high = span
    nodes: list[Node] = []
    while low < high:
        level = (high - low).bit_length() - 1
        if low:
            level = min(level, (low & -low).bit_length() - 1)
        nodes.append(Node(level, low >> level))
        low += 1 << level
    return nodes


def fold(nodes: Iterable[Node], hashes: Mapping[Node, bytes]) -> bytes:
    """Root over subtrees that get lower from left to right."""
    root = b""
    for node in reversed(list(nodes)):
        root = node_hash(hashes[node], root) if root else hashes[node]
    return root


def _split(leaves: int) -> int:
    """Largest power of two below `leaves`."""
    return 1 << ((leaves - 1).bit_length() - 1)


# --- checks -------------------------------------------------------------------------------------


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that a leaf is in a tree (RFC 9162 section 2.1.3.2).

    Args:
        leaf: its hash.
        index: its position, from 0.
        size: leaves of the tree.
        proof: hashes from the leaf's sibling up to the root's child.
        root: the tree's root.

    Raises:
        ProofInvalid: it is not.
    """
    if not 0 <= index < size < LARGEST_SIZE:
        raise ProofInvalid(f"no leaf {index} in a tree of {size}")
    _check_hashes(leaf, root, *proof)
    node, last = index, size - 1
    value = leaf
    for sibling in proof:
        if last == 0:
            raise ProofInvalid("the inclusion proof is too long")
        if node & 1 or node == last:
            value = node_hash(sibling, value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ProofInvalid("the inclusion proof is too short")
    if value != root:
        raise ProofInvalid(f"leaf {index} is not in the tree of size {size} with that root")


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Check that a tree is a prefix of another (RFC 9162 section 2.1.4.2).

    Args:
        old: leaves of the older tree, at least 1.
        new: leaves of the newer tree.
        proof: hashes, as RFC 6962 section 2.1.2 orders them; empty if the sizes are equal.
        old_root: root of the older tree.
        new_root: root of the newer tree.

    Raises:
        ProofInvalid: it is not, or nothing can be proven from size 0.
    """
    if not 0 < old <= new < LARGEST_SIZE:
        raise ProofInvalid(f"no consistency proof from size {old} to {new}")
    _check_hashes(*proof)
    if old == new:
        if proof or old_root != new_root:
            raise ProofInvalid(f"two trees of size {old} differ")
        return
    _check_hashes(old_root, new_root)
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofInvalid("the consistency proof is empty")
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofInvalid("the consistency proof is too long")
        if node & 1 or node == last:
            first = node_hash(sibling, first)
            second = node_hash(sibling, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise ProofInvalid("the consistency proof is too short")
    if first != old_root or second != new_root:
        raise ProofInvalid(f"the tree of size {old} is not a prefix of the one of size {new}")


def _check_hashes(*hashes: bytes) -> None:
    for value in hashes:
        if len(value) != HASH_BYTES:
            raise ProofInvalid(f"a hash has {len(value)} bytes instead of {HASH_BYTES}")


def tile_rows(hashes: bytes) -> Iterator[bytes]:
    """The hashes of a tile, one by one."""
    for start in range(0, len(hashes), HASH_BYTES):
        yield hashes[start : start + HASH_BYTES]
