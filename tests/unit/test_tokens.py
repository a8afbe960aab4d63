from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import jwt
import pytest

from loomos.errors import InvalidInput, Unauthenticated
from loomos.security.tokens import mint, read_key, verify

KEY = "k" * 40


def test_a_token_says_who_and_what() -> None:
    who = verify(KEY, mint(KEY, "ada", ["submit"], timedelta(hours=1)))
    assert who.subject == "ada"
    assert [who.allows(scope) for scope in ("read", "submit", "admin")] == [True, True, False]


@pytest.mark.parametrize(
    "token",
    [
        "",
        "no.token.atall",
        mint("x" * 40, "mallory", ["admin"], timedelta(hours=1)),
        mint(KEY, "late", ["admin"], timedelta(hours=-1)),
        jwt.encode({"sub": "a", "iss": "loomos"}, KEY, algorithm="HS256"),
        jwt.encode({"sub": "a", "iss": "other", "exp": 9e9}, KEY, algorithm="HS256"),
        jwt.encode({"sub": "a", "iss": "loomos", "exp": 9e9}, None, algorithm="none"),
    ],
)
def test_a_token_that_is_not_ours_is_refused(token: str) -> None:
    with pytest.raises(Unauthenticated):
        verify(KEY, token)


def test_a_short_or_missing_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("secret")
    for name in ("short", "missing"):
        with pytest.raises(InvalidInput):
            read_key(tmp_path / name)
