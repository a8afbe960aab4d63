"""Who answers a request: a pure function of the route row, the sticky key and the clock."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal

from loomos.jobs.serving import WHOLE, Route

Arm = Literal["stable", "canary"]


def has_lapsed(route: Route, now: datetime) -> bool:
    """Whether the canary's lease is over: whoever should renew it is gone."""
    return route.expires_at is not None and now >= route.expires_at


def canary_share(route: Route, now: datetime) -> int:
    """The canary's share of traffic in basis points; 0 once its lease has lapsed."""
    return 0 if route.canary is None or has_lapsed(route, now) else route.canary_bp


def pick(route: Route, key: str, now: datetime) -> Arm:
    """The arm that answers the requests of one sticky key.

    The same key stays on the same arm while the share grows: the canary takes the low end of the
    hash, so a larger share only adds keys.
    """
    return "canary" if _point(route.salt, key) < canary_share(route, now) else "stable"


def is_shadowed(route: Route, key: str, now: datetime) -> bool:
    """Whether the canary answers this request too, unseen."""
    if route.canary is None or has_lapsed(route, now):
        return False
    return _point(f"shadow/{route.salt}", key) < route.shadow_bp


def _point(salt: str, key: str) -> int:
    """A key's place in 0..9999, uniform over keys (keyed BLAKE2b, RFC 7693)."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=salt.encode()[:64])
    return int.from_bytes(digest.digest(), "big") % WHOLE
