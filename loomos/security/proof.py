"""How the gateway of an embedded stack proves itself before anybody sends it a token.

A port belongs to whoever listens at it first. So whoever knows the stack's secret (a file that only
the stack's owner can read) sends a fresh challenge, without a token, and the gateway answers with
an HMAC of it under that secret. The HMAC covers the address at which the gateway took the
connection: a stranger that passes the challenge on to the real gateway gets the proof of another
port.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from urllib.parse import urlsplit

PATH = "/api/v1/proof"
CHALLENGE_CHARACTERS = 64


def make_challenge() -> str:
    """A challenge that was never used."""
    return secrets.token_hex(CHALLENGE_CHARACTERS // 2)


def prove(key: str, address: str, challenge: str) -> str:
    """What only a holder of the secret can answer.

    Args:
        key: the stack's secret.
        address: `HOST:PORT` at which the connection was taken.
        challenge: what was asked.
    """
    message = f"loomos gateway\n{address}\n{challenge}".encode()
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()


def is_proof(key: str, endpoint: str, challenge: str, answer: object) -> bool:
    """Whether `answer`, of whatever type it came, proves the gateway at `endpoint`."""
    if not isinstance(answer, str):
        return False
    expected = prove(key, address_of(endpoint), challenge)
    return hmac.compare_digest(expected.encode(), answer.encode(errors="replace"))


def address_of(endpoint: str) -> str:
    """`HOST:PORT` of a URL."""
    parts = urlsplit(endpoint)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def read_stack_key(path: Path | None) -> str | None:
    """The stack's secret; None if there is no such file, or it is empty."""
    try:
        return path.expanduser().read_text(encoding="utf-8").strip() or None if path else None
    except OSError:
        return None
