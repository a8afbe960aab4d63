"""Key and policy files on disk."""

from __future__ import annotations

import os
from pathlib import Path

from loomos.errors import InvalidInput
from loomos.loomdb.notes import SignerKey, decode_text
from loomos.loomdb.policies import Policy


def read_signer(path: Path) -> SignerKey:
    """The signer key in a file.

    Raises:
        InvalidInput: it cannot be read.
        FormatInvalid: it holds no signer key.
    """
    return SignerKey.parse(_read(path, "signer key").strip())


def read_policy(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        InvalidInput: it cannot be read.
        FormatInvalid: it is no policy.
    """
    return Policy.parse(_read(path, "policy"))


def write_secret(path: Path, content: str) -> None:
    """Write a new file that only its owner can read.

    Raises:
        InvalidInput: it is there already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidInput(f"{path} is there already; name another file") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)


def _read(path: Path, what: str) -> str:
    try:
        return decode_text(path.expanduser().read_bytes(), f"{what} {path}")
    except OSError as error:
        raise InvalidInput(f"{what} {path} cannot be read: {error.strerror}") from None
