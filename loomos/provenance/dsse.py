"""DSSE envelopes (github.com/secure-systems-lab/dsse v1.0.2), signed with ECDSA P-256."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from loomos.errors import InvalidInput
from loomos.loomdb.errors import FormatInvalid, SignatureInvalid

IN_TOTO = "application/vnd.in-toto+json"


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What is signed: PAE of type and payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, key: ec.EllipticCurvePrivateKey, payload_type: str = IN_TOTO) -> bytes:
    """A signature over a payload."""
    return key.sign(pre_authentication(payload_type, payload), ec.ECDSA(hashes.SHA256()))


def envelope(payload: bytes, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """A signed envelope, as JSON."""
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": IN_TOTO,
        "signatures": [
            {
                "keyid": key_id(key.public_key()),
                "sig": base64.b64encode(sign(payload, key)).decode(),
            }
        ],
    }


def open_envelope(text: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    """The JSON payload of an envelope that the key signed.

    Raises:
        FormatInvalid: it is no envelope.
        SignatureInvalid: the key did not sign it.
    """
    try:
        content = json.loads(text)
        payload = base64.b64decode(content["payload"], validate=True)
        kind = str(content["payloadType"])
        signatures = [base64.b64decode(s["sig"], validate=True) for s in content["signatures"]]
    except (ValueError, KeyError, TypeError):
        raise FormatInvalid("not a DSSE envelope") from None
    for signature in signatures:
        try:
            key.verify(signature, pre_authentication(kind, payload), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        found: dict[str, Any] = json.loads(payload)
        return found
    raise SignatureInvalid("the attestation key did not sign this envelope")


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """The id that TUF and in-toto tools give this key (securesystemslib's default).

    SHA-256 over OLPC canonical JSON of type, scheme and PEM, in which newlines stand as they are.
    """
    pem = public_pem(key)
    text = f'{{"keytype":"ecdsa","keyval":{{"public":"{pem}"}},"scheme":"ecdsa-sha2-nistp256"}}'
    return hashlib.sha256(text.encode()).hexdigest()


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """The public key as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def make_key() -> str:
    """A new private key, as PEM."""
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a PEM file.

    Raises:
        InvalidInput: there is none, or it is no P-256 key.
    """
    try:
        key = serialization.load_pem_private_key(path.expanduser().read_bytes(), None)
    except OSError as error:
        raise InvalidInput(f"attestation key {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidInput(f"attestation key {path} is no unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise InvalidInput(f"attestation key {path} must be an ECDSA P-256 key")
    return key


def parse_public(pem: str) -> ec.EllipticCurvePublicKey:
    """A public key from PEM.

    Raises:
        FormatInvalid: it is no P-256 key.
    """
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise FormatInvalid("the attestation key is no PEM public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FormatInvalid("the attestation key is no elliptic curve key")
    return key
