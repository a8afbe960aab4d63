"""Signed notes (C2SP signed-note) and cosignatures (C2SP tlog-cosignature).

A note is text and signature lines. Three kinds of key sign: a log's Ed25519 key (type 0x01), and a
witness's Ed25519 (0x04) or ML-DSA-44 (0x06) key, whose signature carries a time. Keys travel as
verifier keys, `name+keyid+base64(type || public key)`, and signer keys,
`PRIVATE+KEY+name+keyid+base64(type || seed)`, as golang.org/x/mod/sumdb/note writes them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from loomos.loomdb.errors import FormatInvalid, SignatureInvalid

LARGEST_NOTE_BYTES = 1 << 20
MOST_SIGNATURES = 100
"""More signature lines than any honest note has; a limit on work for strangers."""

_DASH = "\N{EM DASH} "
_PRIVATE = "PRIVATE+KEY+"


class KeyType(IntEnum):
    """What a key signs, and how."""

    ED25519 = 0x01
    """The text of a note."""
    COSIGNATURE_ED25519 = 0x04
    """A checkpoint and a time."""
    COSIGNATURE_MLDSA44 = 0x06
    """A checkpoint's origin, size and root, and a time; safe from quantum computers."""


SEED_BYTES = 32
_PUBLIC_BYTES = {
    KeyType.ED25519: 32,
    KeyType.COSIGNATURE_ED25519: 32,
    KeyType.COSIGNATURE_MLDSA44: 1312,
}


@dataclass(frozen=True)
class Signature:
    """One signature line."""

    name: str
    """Name of the key."""
    key_id: bytes
    """Four bytes; with the name it says which key and algorithm."""
    value: bytes
    """What the key made."""

    def line(self) -> str:
        """As in a note, newline included."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.value).decode()}\n"

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a signature line without its newline.

        Raises:
            FormatInvalid: it is none.
        """
        parts = line.removeprefix(_DASH).split(" ")
        if not line.startswith(_DASH) or len(parts) != 2 or not is_key_name(parts[0]):
            raise FormatInvalid(f"not a signature line: {line[:80]!r}")
        blob = decode_base64(parts[1])
        if len(blob) < 5:
            raise FormatInvalid(f"the signature of {parts[0]} is too short")
        return cls(parts[0], blob[:4], blob[4:])


@dataclass(frozen=True)
class Note:
    """Text and signatures. The text means nothing before a known key's signature is verified."""

    text: str
    """Ends in a newline."""
    signatures: tuple[Signature, ...]

    def encode(self) -> str:
        """The note as it is stored and sent."""
        return f"{self.text}\n" + "".join(s.line() for s in self.signatures)

    @classmethod
    def parse(cls, encoded: str) -> Self:
        """Read a note.

        Raises:
            FormatInvalid: it is none, or larger than any honest one.
        """
        if len(encoded) > LARGEST_NOTE_BYTES:
            raise FormatInvalid("the note is larger than 1 MiB")
        if any(c < " " and c != "\n" for c in encoded):
            raise FormatInvalid("the note has control characters")
        text, separator, tail = encoded.rpartition("\n\n")
        if not separator or not tail.endswith("\n"):
            raise FormatInvalid("the note has no signatures, or its last line does not end")
        lines = tail[:-1].split("\n")
        if len(lines) > MOST_SIGNATURES:
            raise FormatInvalid(f"the note has more than {MOST_SIGNATURES} signatures")
        return cls(text + "\n", tuple(Signature.parse(line) for line in lines))

    def with_signatures(self, more: Iterable[Signature]) -> Note:
        """The note with more signatures; none twice."""
        return Note(self.text, tuple(dict.fromkeys((*self.signatures, *more))))


@dataclass(frozen=True)
class VerifierKey:
    """A public key with its name."""

    name: str
    key_type: KeyType
    public: bytes

    @property
    def key_id(self) -> bytes:
        """First four bytes of SHA-256(name, newline, type, public key)."""
        material = self.name.encode() + b"\n" + bytes([self.key_type]) + self.public
        return hashlib.sha256(material).digest()[:4]

    def encode(self) -> str:
        """As a verifier key (vkey)."""
        material = base64.b64encode(bytes([self.key_type]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """Read a verifier key.

        Raises:
            FormatInvalid: it is none, or of a type not known here.
        """
        name, key_id, key_type, public = _split_key(vkey)
        if len(public) != _PUBLIC_BYTES[key_type]:
            raise FormatInvalid(f"the verifier key of {name} has {len(public)} bytes")
        key = cls(name, key_type, public)
        if key.key_id != key_id:
            raise FormatInvalid(f"the verifier key of {name} does not fit its key id")
        return key

    def matches(self, signature: Signature) -> bool:
        """Whether a signature claims to be of this key."""
        return signature.name == self.name and signature.key_id == self.key_id

    def verify(self, signature: Signature, text: str) -> int | None:
        """Check a signature over a note's text.

        Returns:
            The time of a cosignature, in seconds since the epoch; None for a log's signature.

        Raises:
            SignatureInvalid: it does not verify.
        """
        try:
            if self.key_type is KeyType.ED25519:
                self._ed25519().verify(signature.value, text.encode())
                return None
            if len(signature.value) < 8:
                raise InvalidSignature
            (timestamp,) = struct.unpack(">Q", signature.value[:8])
            if timestamp >= 1 << 63:
                raise InvalidSignature
            message = _cosigned(self.key_type, self.name, timestamp, text)
            if self.key_type is KeyType.COSIGNATURE_ED25519:
                self._ed25519().verify(signature.value[8:], message)
            else:
                MLDSA44PublicKey.from_public_bytes(self.public).verify(signature.value[8:], message)
            return int(timestamp)
        except InvalidSignature:
            raise SignatureInvalid(f"the signature of {self.name} does not verify") from None

    def _ed25519(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.public)


@dataclass(frozen=True)
class SignerKey:
    """A private key with its name."""

    name: str
    key_type: KeyType
    seed: bytes

    def __repr__(self) -> str:
        return f"SignerKey({self.name!r}, {self.key_type!r}, seed=...)"

    @classmethod
    def generate(cls, name: str, key_type: KeyType = KeyType.ED25519) -> Self:
        """A new key.

        Raises:
            FormatInvalid: the name has spaces or a plus.
        """
        if not is_key_name(name):
            raise FormatInvalid(f"key name {name!r}: use no spaces and no plus, as example.org/log")
        if key_type is KeyType.COSIGNATURE_MLDSA44:
            return cls(name, key_type, MLDSA44PrivateKey.generate().private_bytes_raw())
        return cls(name, key_type, Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def verifier(self) -> VerifierKey:
        """Its public half."""
        if self.key_type is KeyType.COSIGNATURE_MLDSA44:
            public = MLDSA44PrivateKey.from_seed_bytes(self.seed).public_key().public_bytes_raw()
        else:
            public = self._ed25519().public_key().public_bytes_raw()
        return VerifierKey(self.name, self.key_type, public)

    def encode(self) -> str:
        """As a signer key; secret."""
        material = base64.b64encode(bytes([self.key_type]) + self.seed).decode()
        return f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{material}"

    @classmethod
    def parse(cls, skey: str) -> Self:
        """Read a signer key.

        Raises:
            FormatInvalid: it is none; the message does not repeat it.
        """
        if not skey.startswith(_PRIVATE):
            raise FormatInvalid(f"not a signer key: it must begin with {_PRIVATE}")
        try:
            name, key_id, key_type, seed = _split_key(skey.removeprefix(_PRIVATE))
        except FormatInvalid:
            raise FormatInvalid("not a signer key: PRIVATE+KEY+name+keyid+base64") from None
        if len(seed) != SEED_BYTES:
            raise FormatInvalid(f"the signer key of {name} has {len(seed)} bytes, not 32")
        key = cls(name, key_type, seed)
        if key.verifier.key_id != key_id:
            raise FormatInvalid(f"the signer key of {name} does not fit its key id")
        return key

    def sign(self, text: str, timestamp: int = 0) -> Signature:
        """Sign a note's text; a cosignature says at what time, in seconds since the epoch."""
        if self.key_type is KeyType.ED25519:
            value = self._ed25519().sign(text.encode())
        else:
            message = _cosigned(self.key_type, self.name, timestamp, text)
            value = struct.pack(">Q", timestamp)
            if self.key_type is KeyType.COSIGNATURE_ED25519:
                value += self._ed25519().sign(message)
            else:
                value += MLDSA44PrivateKey.from_seed_bytes(self.seed).sign(message)
        return Signature(self.name, self.verifier.key_id, value)

    def _ed25519(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def verify_note(note: Note, keys: Sequence[VerifierKey]) -> list[tuple[VerifierKey, int | None]]:
    """Check every signature that a known key claims to have made.

    Returns:
        The keys that signed, each with the time of its cosignature.

    Raises:
        SignatureInvalid: a known key's signature is wrong, or no known key signed.
    """
    verified = [
        (key, key.verify(signature, note.text))
        for signature in note.signatures
        for key in keys
        if key.matches(signature)
    ]
    if not verified:
        known = ", ".join(key.name for key in keys) or "none"
        raise SignatureInvalid(f"no known key signed the note; known: {known}")
    return verified


def is_key_name(name: str) -> bool:
    """Whether a key may be called so."""
    return bool(name) and "+" not in name and not any(c.isspace() or c < " " for c in name)


def decode_base64(text: str) -> bytes:
    """Standard base 64 (RFC 4648 section 4), in its one canonical spelling.

    Raises:
        FormatInvalid: it is not.
    """
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatInvalid(f"not base 64: {text[:60]!r}") from None
    if base64.b64encode(value).decode() != text:
        raise FormatInvalid(f"not canonical base 64: {text[:60]!r}")
    return value


def decode_text(content: bytes, what: str) -> str:
    """UTF-8.

    Raises:
        FormatInvalid: it is not, naming `what`.
    """
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise FormatInvalid(f"{what} is not UTF-8 text") from None


def _split_key(text: str) -> tuple[str, bytes, KeyType, bytes]:
    parts = text.strip().split("+", 2)
    if len(parts) != 3 or not is_key_name(parts[0]) or len(parts[1]) != 8:
        raise FormatInvalid(f"not a verifier key (name+keyid+base64): {text[:60]!r}")
    try:
        key_id = bytes.fromhex(parts[1])
    except ValueError:
        raise FormatInvalid(f"the key id {parts[1]!r} is not hexadecimal") from None
    blob = decode_base64(parts[2])
    try:
        return parts[0], key_id, KeyType(blob[0]), blob[1:]
    except (IndexError, ValueError):
        raise FormatInvalid(f"the key of {parts[0]} is of no type known here") from None


def _cosigned(key_type: KeyType, name: str, timestamp: int, text: str) -> bytes:
    """What a cosignature signs (C2SP tlog-cosignature)."""
    if key_type is KeyType.COSIGNATURE_ED25519:
        return f"cosignature/v1\ntime {timestamp}\n{text}".encode()
    from loomos.loomdb.checkpoints import Checkpoint

    checkpoint = Checkpoint.parse_text(text)

    def opaque(value: str) -> bytes:
        encoded = value.encode()
        if len(encoded) > 255:
            raise FormatInvalid(f"longer than 255 bytes: {value[:60]!r}")
        return bytes([len(encoded)]) + encoded

    return (
        b"subtree/v1\n\0"
        + opaque(name)
        + struct.pack(">Q", timestamp)
        + opaque(checkpoint.origin)
        + struct.pack(">QQ", 0, checkpoint.size)
        + checkpoint.root
    )
