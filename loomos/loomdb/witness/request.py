"""The body of add-checkpoint (C2SP tlog-witness)."""

from __future__ import annotations

import base64

from loomos.loomdb.checkpoints import parse_decimal
from loomos.loomdb.errors import FormatInvalid
from loomos.loomdb.merkle import HASH_BYTES
from loomos.loomdb.notes import Note, decode_base64

MOST_PROOF_LINES = 63


def encode_request(old_size: int, proof: tuple[bytes, ...], note: Note) -> bytes:
    """The body of add-checkpoint."""
    lines = [f"old {old_size}", *(base64.b64encode(value).decode() for value in proof), ""]
    return ("".join(f"{line}\n" for line in lines) + note.encode()).encode()


def decode_request(body: bytes) -> tuple[int, tuple[bytes, ...], Note]:
    """Old size, proof and checkpoint of a body.

    Raises:
        FormatInvalid: it is malformed.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise FormatInvalid("the request is not UTF-8") from None
    head, separator, note = text.partition("\n\n")
    lines = head.split("\n")
    if not separator or not lines[0].startswith("old "):
        raise FormatInvalid("the request must begin with `old SIZE`")
    if len(lines) - 1 > MOST_PROOF_LINES:
        raise FormatInvalid(f"more than {MOST_PROOF_LINES} proof lines")
    proof = tuple(decode_base64(line) for line in lines[1:])
    if any(len(value) != HASH_BYTES for value in proof):
        raise FormatInvalid("a hash of the proof has not 32 bytes")
    return parse_decimal(lines[0].removeprefix("old "), "old size"), proof, Note.parse(note)
