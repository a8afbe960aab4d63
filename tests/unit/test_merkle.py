from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from loomos.loomdb.errors import ProofInvalid
from loomos.loomdb.merkle import (
    EMPTY_ROOT,
    Node,
    Tree,
    consistency_spans,
    fold,
    inclusion_spans,
    leaf_hash,
    node_hash,
    nodes_of,
    root_of,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "merkle" / "transparency-dev.json"


def leaves_of(entries: list[bytes]) -> list[bytes]:
    return [leaf_hash(entry) for entry in entries]


def prove(spans: list[tuple[int, int]], leaves: list[bytes]) -> list[bytes]:
    """Proof hashes, from the leaves themselves."""

    def node(wanted: Node) -> bytes:
        low = wanted.place << wanted.level
        return root_of(leaves[low : low + (1 << wanted.level)])

    return [fold(nodes_of(span), {n: node(n) for n in nodes_of(span)}) for span in spans]


def textbook_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(textbook_root(leaves[:split]), textbook_root(leaves[split:]))


def unpacked(values: list[str] | None) -> list[bytes]:
    return [base64.b64decode(v) for v in values or []]


def cases(kind: str) -> list[Any]:
    """The public cases; none where they are not at hand."""
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip("the public vectors are not here"))]
    found = json.loads(VECTORS.read_text())[kind]
    return [pytest.param(case, id=case["_file"]) for case in found]


def test_all_public_vectors_are_there() -> None:
    if not VECTORS.exists():
        pytest.skip("the public vectors are not here")
    content = json.loads(VECTORS.read_text())
    assert len(content["inclusion"]) + len(content["consistency"]) == 196


@pytest.mark.parametrize("case", cases("inclusion"))
def test_public_inclusion_vectors(case: dict[str, Any]) -> None:
    arguments = (
        base64.b64decode(case["leafHash"]),
        case["leafIdx"],
        case["treeSize"],
        unpacked(case["proof"]),
        base64.b64decode(case["root"]),
    )
    if case["wantErr"]:
        with pytest.raises(ProofInvalid):
            verify_inclusion(*arguments)
    else:
        verify_inclusion(*arguments)


@pytest.mark.parametrize("case", cases("consistency"))
def test_public_consistency_vectors(case: dict[str, Any]) -> None:
    arguments = (
        case["size1"],
        case["size2"],
        unpacked(case["proof"]),
        base64.b64decode(case["root1"]),
        base64.b64decode(case["root2"]),
    )
    if case["wantErr"]:
        with pytest.raises(ProofInvalid):
            verify_consistency(*arguments)
    else:
        verify_consistency(*arguments)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=600), st.data())
def test_agrees_with_pymerkle(entries: list[bytes], data: st.DataObject) -> None:
    peer = InmemoryTree(algorithm="sha256")
    for entry in entries:
        peer.append_entry(entry)
    leaves = leaves_of(entries)
    size = len(entries)
    assert root_of(leaves) == peer.get_root(size)
    index = data.draw(st.integers(0, size - 1))
    proof = prove(inclusion_spans(index, size), leaves)
    theirs = peer.prove_inclusion(index + 1, size)
    assert proof == theirs.path[1:]
    verify_inclusion(leaves[index], index, size, proof, peer.get_root(size))
    old = data.draw(st.integers(1, size))
    consistency = prove(consistency_spans(old, size), leaves)
    verify_consistency(old, size, consistency, peer.get_root(old), peer.get_root(size))
    if proof:
        broken = data.draw(st.integers(0, len(proof) - 1))
        proof[broken] = bytes([proof[broken][0] ^ 1]) + proof[broken][1:]
        with pytest.raises(ProofInvalid):
            verify_inclusion(leaves[index], index, size, proof, peer.get_root(size))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=6))
def test_a_tree_grown_in_pieces_has_the_textbook_root_and_its_tiles(pieces: list[int]) -> None:
    tree, tiles = Tree(), []
    leaves: list[bytes] = []
    for count in pieces:
        more = leaves_of([f"{len(leaves) + i}".encode() for i in range(count)])
        leaves += more
        before = tree
        tree, full = tree.append(more)
        tiles += full
        assert before.size + count == tree.size
    assert tree.root() == textbook_root(leaves)
    assert [t.place for t in tiles if t.level == 0] == list(range(len(leaves) // 256))
    for tile in tiles:
        span = 256**tile.level
        roots = [
            textbook_root(leaves[i * span : (i + 1) * span])
            for i in range(tile.place * 256, (tile.place + 1) * 256)
        ]
        assert tile.hashes == b"".join(roots)
        assert tile.root == root_of(roots)


def test_a_tile_of_the_second_level_appears_at_65536_leaves() -> None:
    leaf = leaf_hash(b"x")
    tree, tiles = Tree().append([leaf] * 65_537)
    upper = [t for t in tiles if t.level == 1]
    assert [t.place for t in upper] == [0]
    assert upper[0].root == textbook_root([leaf] * 65_536)
    assert tree.root() == textbook_root([leaf] * 65_537)


def test_growing_is_a_value_so_a_failed_commit_can_forget_it() -> None:
    tree, _ = Tree().append(leaves_of([b"a", b"b"]))
    tree.append(leaves_of([b"c"]))
    assert tree.size == 2
    assert tree.root() == textbook_root(leaves_of([b"a", b"b"]))


def test_the_empty_tree() -> None:
    assert Tree().root() == EMPTY_ROOT == hashlib.sha256(b"").digest()
    with pytest.raises(ProofInvalid, match="size 0"):
        verify_consistency(0, 3, [], EMPTY_ROOT, leaf_hash(b"x"))
