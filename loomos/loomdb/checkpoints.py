"""Checkpoints: what a log says of itself (C2SP tlog-checkpoint)."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Self

from loomos.loomdb.errors import FormatInvalid, SignatureInvalid
from loomos.loomdb.merkle import HASH_BYTES, LARGEST_SIZE
from loomos.loomdb.notes import Note, SignerKey, VerifierKey, decode_base64, verify_note

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class Checkpoint:
    """Origin, size and root of a log."""

    origin: str
    """Which log; the name of its key."""
    size: int
    """Entries."""
    root: bytes
    """Root hash of its tree, 32 bytes."""
    extensions: tuple[str, ...] = ()
    """Further lines; nobody vouches for them."""

    def text(self) -> str:
        """The text that is signed."""
        lines = [self.origin, str(self.size), base64.b64encode(self.root).decode()]
        return "".join(f"{line}\n" for line in (*lines, *self.extensions))

    def sign(self, key: SignerKey) -> Note:
        """The checkpoint as a note signed by the log."""
        return Note(self.text(), (key.sign(self.text()),))

    @classmethod
    def parse_text(cls, text: str) -> Self:
        """Read a note's text; verified is nothing.

        Raises:
            FormatInvalid: it is no checkpoint.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise FormatInvalid("a checkpoint has an origin, a size and a root, a line each")
        origin, size, root, *extensions = lines[:-1]
        count = parse_decimal(size, "checkpoint size")
        digest = decode_base64(root)
        if len(digest) != HASH_BYTES:
            raise FormatInvalid("the checkpoint's root has not 32 bytes")
        return cls(origin, count, digest, tuple(extensions))


def open_checkpoint(encoded: str, log_key: VerifierKey) -> tuple[Checkpoint, Note]:
    """Read a checkpoint note and verify the log's signature.

    Raises:
        FormatInvalid: it is no checkpoint.
        SignatureInvalid: the log did not sign it, or it is of another log.
    """
    note = Note.parse(encoded)
    verify_note(note, [log_key])
    checkpoint = Checkpoint.parse_text(note.text)
    if checkpoint.origin != log_key.name:
        raise SignatureInvalid(
            f"the checkpoint is of {checkpoint.origin!r}, the key of {log_key.name!r}"
        )
    return checkpoint, note


def parse_decimal(text: str, what: str) -> int:
    """A size or index: ASCII digits, no leading zero, below 2**63.

    Raises:
        FormatInvalid: it is none.
    """
    if not _DECIMAL.fullmatch(text) or int(text) >= LARGEST_SIZE:
        raise FormatInvalid(f"{what} {text[:30]!r} is not a plain decimal below 2**63")
    return int(text)
