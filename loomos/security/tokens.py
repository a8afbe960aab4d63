"""Bearer tokens: signed, scoped, short-lived (JWT, RFC 7519, HS256).

Scopes include the ones before them: `read` < `submit` < `admin`.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import jwt
from pydantic import BaseModel, ConfigDict

from loomos.errors import InvalidInput, Unauthenticated

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "submit", "admin")
ISSUER = "loomos"
LONGEST_SUBJECT = 256
_SUBJECT = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{LONGEST_SUBJECT}}}")


class Identity(BaseModel):
    """Who a request comes from."""

    model_config = ConfigDict(frozen=True)

    subject: str
    """Name of the person or machine; owner of the jobs it submits."""
    scopes: frozenset[str]
    """What it may do."""

    def allows(self, scope: Scope) -> bool:
        """Whether one of the scopes is, or includes, `scope`."""
        return any(wider in self.scopes for wider in SCOPES[SCOPES.index(scope) :])


def read_key(path: Path) -> str:
    """Read a signing key.

    Raises:
        InvalidInput: the file is missing or the key too short.
    """
    try:
        key = path.expanduser().read_text().strip()
    except OSError as error:
        raise InvalidInput(
            f"auth.signing_key_file {str(path)!r} cannot be read: {error.strerror}"
        ) from None
    if len(key) < 32:
        raise InvalidInput(f"the key in {path} is shorter than 32 characters; make a longer one")
    return key


def new_key() -> str:
    """A new key."""
    return secrets.token_urlsafe(48)


def mint(key: str, subject: str, scopes: list[Scope], lifetime: timedelta) -> str:
    """Sign a token."""
    now = datetime.now(UTC)
    claims = {
        "iss": ISSUER,
        "sub": subject,
        "scope": " ".join(scopes),
        "iat": now,
        "exp": now + lifetime,
        "jti": secrets.token_hex(8),
    }
    return jwt.encode(claims, key, algorithm="HS256")


def verify(key: str, token: str) -> Identity:
    """Check a token.

    Raises:
        Unauthenticated: it is not ours, was changed, or has expired.
    """
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=["HS256"],
            issuer=ISSUER,
            options={"require": ["exp", "sub", "iss"]},
        )
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("the token has expired; `loomos auth create-token` mints") from None
    except (jwt.InvalidTokenError, OverflowError, ValueError, RecursionError) as error:
        # Besides its own errors, PyJWT lets through what numbers like 1e400 and NUL do to it.
        raise Unauthenticated(f"the token is not valid ({error}); `loomos auth login`") from None
    subject, scope = claims["sub"], claims.get("scope", "")
    if not (isinstance(subject, str) and _SUBJECT.fullmatch(subject)):
        raise Unauthenticated(f"the token's sub is not a name of 1 to {LONGEST_SUBJECT} characters")
    if not isinstance(scope, str):
        raise Unauthenticated("the token's scope is not a text")
    return Identity(subject=subject, scopes=frozenset(scope.split()))
