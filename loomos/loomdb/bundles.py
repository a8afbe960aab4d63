"""Offline proofs that something is in the log (C2SP tlog-proof)."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Self

from loomos.loomdb.checkpoints import Checkpoint, parse_decimal
from loomos.loomdb.errors import FormatInvalid
from loomos.loomdb.merkle import HASH_BYTES, leaf_hash, verify_inclusion
from loomos.loomdb.notes import Note, decode_base64
from loomos.loomdb.policies import Policy

HEADER = "c2sp.org/tlog-proof@v1"
LONGEST_PROOF = 63


@dataclass(frozen=True)
class ProofBundle:
    """An entry's index, its inclusion proof, and the checkpoint that the proof leads to."""

    index: int
    """Position of the entry."""
    proof: tuple[bytes, ...]
    """From the leaf's sibling up to the root's child."""
    checkpoint: Note
    """With its cosignatures."""
    extra: bytes | None = None
    """Not authenticated."""

    def encode(self) -> str:
        """The bundle as a `.tlog-proof` file."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(value).decode() for value in self.proof]
        return "".join(f"{line}\n" for line in lines) + "\n" + self.checkpoint.encode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a bundle; verified is nothing.

        Raises:
            FormatInvalid: it is none.
        """
        head, separator, note = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or lines[0] != HEADER:
            raise FormatInvalid(f"not a proof bundle: it must begin with {HEADER}")
        rest = lines[1:]
        extra = None
        if rest and rest[0].startswith("extra "):
            extra = decode_base64(rest.pop(0).removeprefix("extra "))
        if not rest or not rest[0].startswith("index "):
            raise FormatInvalid("the bundle has no index line")
        index = parse_decimal(rest[0].removeprefix("index "), "index")
        if len(rest) - 1 > LONGEST_PROOF:
            raise FormatInvalid(f"the bundle's proof has more than {LONGEST_PROOF} hashes")
        proof = tuple(decode_base64(line) for line in rest[1:])
        if any(len(value) != HASH_BYTES for value in proof):
            raise FormatInvalid("a hash of the bundle's proof has not 32 bytes")
        return cls(index, proof, Note.parse(note), extra)

    def verify(self, entry: bytes, policy: Policy) -> Checkpoint:
        """Check that the log has `entry`, with nothing but the policy's keys.

        Raises:
            VerificationFailed: it is not proven; says why.
        """
        checkpoint = policy.verify(self.checkpoint)
        verify_inclusion(leaf_hash(entry), self.index, checkpoint.size, self.proof, checkpoint.root)
        return checkpoint
