from __future__ import annotations

import base64
import json

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from sigstore._internal.rekor.checkpoint import LogCheckpoint, SignedNote

from loomos.errors import InvalidInput
from loomos.loomdb.bundles import ProofBundle
from loomos.loomdb.canonical import canonical_json
from loomos.loomdb.checkpoints import Checkpoint, open_checkpoint
from loomos.loomdb.errors import (
    FormatInvalid,
    ProofInvalid,
    QuorumMissing,
    SignatureInvalid,
    VerificationFailed,
)
from loomos.loomdb.merkle import leaf_hash, node_hash
from loomos.loomdb.notes import KeyType, Note, Signature, SignerKey, VerifierKey, verify_note
from loomos.loomdb.policies import Group, Member, Policy
from loomos.loomdb.witness.request import decode_request, encode_request

LOG = SignerKey.generate("example.com/log")
W1 = SignerKey.generate("w1.example", KeyType.COSIGNATURE_ED25519)
W2 = SignerKey.generate("w2.example", KeyType.COSIGNATURE_MLDSA44)
HASHES = st.binary(min_size=32, max_size=32)
NAMES = st.from_regex(r"[a-z0-9./é-]{1,30}", fullmatch=True)

# The example of golang.org/x/mod/sumdb/note's documentation.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6"
    "KE6RyyBwJnAM=\n"
)


def test_a_note_of_another_implementation_verifies() -> None:
    key = VerifierKey.parse(PETER)
    note = Note.parse(PETER_NOTE)
    assert verify_note(note, [key]) == [(key, None)]
    assert note.encode() == PETER_NOTE
    assert key.encode() == PETER


def test_the_go_example_signer_key_has_that_verifier_key() -> None:
    skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
    key = SignerKey.parse(skey)
    assert key.verifier.encode() == PETER
    assert key.encode() == skey
    assert "AYEKFAL" not in repr(key)


@settings(max_examples=50, deadline=None)
@given(NAMES, st.integers(0, 2**63 - 1), HASHES)
def test_another_implementation_reads_our_checkpoints(name: str, size: int, root: bytes) -> None:
    key = SignerKey.generate(name)
    checkpoint = Checkpoint(name, size, root)
    encoded = checkpoint.sign(key).encode()
    theirs = LogCheckpoint.from_text(SignedNote.from_text(encoded).note)
    assert (theirs.origin, theirs.log_size, theirs.log_hash) == (name, size, root.hex())
    (signature,) = SignedNote.from_text(encoded).signatures
    assert signature.name == name
    assert signature.sig_hash == key.verifier.key_id
    assert open_checkpoint(encoded, key.verifier)[0] == checkpoint


@pytest.mark.parametrize("key_type", list(KeyType))
def test_keys_round_trip_and_sign(key_type: KeyType) -> None:
    key = SignerKey.generate("k.example/1", key_type)
    assert SignerKey.parse(key.encode()) == key
    assert VerifierKey.parse(key.verifier.encode()) == key.verifier
    text = Checkpoint("example.com/log", 7, bytes(32)).text()
    note = Note(text, (key.sign(text, 1_700_000_000),))
    time = None if key_type is KeyType.ED25519 else 1_700_000_000
    assert verify_note(Note.parse(note.encode()), [key.verifier]) == [(key.verifier, time)]
    other = Note(Checkpoint("example.com/log", 8, bytes(32)).text(), note.signatures)
    with pytest.raises(SignatureInvalid):
        verify_note(other, [key.verifier])


def test_every_bit_of_a_cosignature_counts() -> None:
    text = Checkpoint("example.com/log", 7, bytes(32)).text()
    for key in (W1, W2):
        value = key.sign(text, 5).value
        for place in range(0, len(value), max(1, len(value) // 60)):
            changed = bytearray(value)
            changed[place] ^= 1
            with pytest.raises(SignatureInvalid):
                key.verifier.verify(Signature(key.name, key.verifier.key_id, bytes(changed)), text)


def test_the_ed25519_cosignature_of_the_specification_has_its_layout() -> None:
    # From C2SP tlog-cosignature: 4 bytes of key id, 8 of time, 64 of signature.
    line = (
        "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJs"
        "X3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA=="
    )
    signature = Signature.parse(line)
    assert len(signature.value) == 72
    assert int.from_bytes(signature.value[:8], "big") == 1679315147
    assert signature.line() == line + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no signatures\n",
        "text\n\n",
        "text\n\n— name notbase64!\n",
        "text\n\n— name AAAA\n",
        "text\n\n- name AAAAAAAA\n",
        "text\n\n— na+me AAAAAAAA\n",
        "text\r\n\n— name AAAAAAAA\n",
        "text\n\n— name AAAAAAAA",
        "text\n\n" + "— name AAAAAAAA\n" * 101,
    ],
)
def test_malformed_notes_are_refused(text: str) -> None:
    with pytest.raises(FormatInvalid):
        Note.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "origin\n1\n",
        "origin\n01\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "origin\n-1\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "origin\n9223372036854775808\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "origin\n1\n" + base64.b64encode(bytes(31)).decode() + "\n",
        "\n1\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "origin\n1\nAAA\n",
    ],
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    with pytest.raises(FormatInvalid):
        Checkpoint.parse_text(text)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**62),
    st.lists(HASHES, max_size=63),
    st.one_of(st.none(), st.binary(max_size=50)),
)
def test_bundles_round_trip(index: int, proof: list[bytes], extra: bytes | None) -> None:
    note = Checkpoint("example.com/log", index + 1, bytes(32)).sign(LOG)
    bundle = ProofBundle(index, tuple(proof), note, extra)
    assert ProofBundle.parse(bundle.encode()) == bundle


def test_a_bundle_proves_its_entry_and_no_other() -> None:
    leaves = [leaf_hash(b"a"), leaf_hash(b"b")]
    note = Checkpoint(LOG.name, 2, node_hash(*leaves)).sign(LOG)
    bundle = ProofBundle(1, (leaves[0],), note)
    policy = Policy.for_log(LOG.verifier)
    assert bundle.verify(b"b", policy).size == 2
    with pytest.raises(ProofInvalid):
        bundle.verify(b"a", policy)
    with pytest.raises(SignatureInvalid):
        bundle.verify(b"b", Policy.for_log(SignerKey.generate(LOG.name).verifier))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**62), st.lists(HASHES, max_size=63))
def test_witness_requests_round_trip(old: int, proof: list[bytes]) -> None:
    note = Checkpoint("example.com/log", 9, bytes(32)).sign(LOG)
    assert decode_request(encode_request(old, tuple(proof), note)) == (old, tuple(proof), note)


def policy_text() -> str:
    return (
        f"# who we trust\nlog {LOG.verifier.encode()} https://log.example\n\n"
        f"witness one {W1.verifier.encode()}\n\twitness two {W2.verifier.encode()} http://w2\n"
        "group both all one two\nquorum both\n"
    )


def test_policies_round_trip_and_count_cosignatures() -> None:
    policy = Policy.parse(policy_text())
    assert policy.logs == (Member(LOG.verifier, "https://log.example"),)
    assert policy.groups == {"both": Group(2, ("one", "two"))}
    assert Policy.parse(policy.encode()) == policy
    note = Checkpoint(LOG.name, 3, bytes(32)).sign(LOG)
    with pytest.raises(QuorumMissing, match="nobody"):
        policy.verify(note)
    one = note.with_signatures([W1.sign(note.text, 1)])
    with pytest.raises(QuorumMissing, match="one"):
        policy.verify(one)
    both = one.with_signatures([W2.sign(note.text, 2)])
    assert policy.verify(both).size == 3
    forged = one.with_signatures([SignerKey.generate("w2.example", W2.key_type).sign(note.text)])
    with pytest.raises(QuorumMissing):
        policy.verify(forged)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param("", "no quorum", id="no quorum"),
        pytest.param("quorum one\nquorum one", "second quorum", id="second quorum"),
        pytest.param("quorum three", "not defined", id="not defined"),
        pytest.param(f"witness one {W1.verifier.encode()}\nquorum none", "taken", id="taken"),
        pytest.param(f"witness again {W1.verifier.encode()}\nquorum none", "twice", id="twice"),
        pytest.param(
            f"witness x {LOG.verifier.encode()}\nquorum none", "wrong type", id="wrong type"
        ),
        pytest.param("group g 3 one two\nquorum g", "3 of 2", id="3 of 2"),
        pytest.param("group g 0 one two\nquorum g", "0 of 2", id="0 of 2"),
        pytest.param(
            "group g any one\ngroup h any one\nquorum h",
            "in a group already",
            id="in a group already",
        ),
        pytest.param("group none any one\nquorum none", "taken", id="taken 2"),
        pytest.param("witness\nquorum none", "not understood", id="not understood"),
        pytest.param("log x+y\nquorum none", "verifier key", id="verifier key"),
        pytest.param("quorum one\r", "control characters", id="control characters"),
    ],
)
def test_malformed_policies_say_which_line(line: str, why: str) -> None:
    text = f"witness one {W1.verifier.encode()}\nwitness two {W2.verifier.encode()}\n{line}\n"
    with pytest.raises(FormatInvalid, match=why):
        Policy.parse(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(JSON)
def test_canonical_json_is_that_of_rfc_8785(value: object) -> None:
    assert canonical_json(value).encode() == rfc8785.dumps(value)  # type: ignore[arg-type]
    assert json.loads(canonical_json(value), parse_int=float) == value


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {"a": b"x"}, 2**53 + 1, {"a": {1, 2}}, "\ud800"]
)
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        canonical_json(value)


def test_every_failure_is_one_family() -> None:
    for error in (FormatInvalid, ProofInvalid, SignatureInvalid, QuorumMissing):
        assert issubclass(error, VerificationFailed)
