"""What a rollout does to a route row. Each function makes the next row of the present one.

Only the holder that opened a canary may change it; a canary whose lease has lapsed has no holder.
All of them give back the row they got when there is nothing to change, so retries are harmless.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from loomos.errors import Conflict
from loomos.jobs.serving import Route, Target
from loomos.serving.routes import has_lapsed


def opened(route: Route, candidate: Target, holder: str, lease: timedelta, now: datetime) -> Route:
    """The row with a canary that is loaded and has no traffic.

    Raises:
        Conflict: another canary is on trial, or the candidate is stable already.
    """
    if route.holder == holder and route.canary == candidate:
        return route
    if route.canary is not None and route.holder != holder and not has_lapsed(route, now):
        raise Conflict(
            f"{route.endpoint} has a canary already ({route.canary.version} by {route.holder}); "
            "abort that first"
        )
    if candidate == route.stable:
        raise Conflict(f"{candidate.version} is stable at {route.endpoint} already")
    return route.model_copy(
        update={
            "canary": candidate,
            "canary_bp": 0,
            "shadow_bp": 0,
            "holder": holder,
            "stage": "",
            "salt": secrets.token_hex(8),
            "expires_at": now + lease,
        }
    )


def with_traffic(
    route: Route,
    holder: str,
    stage: str,
    canary_bp: int,
    shadow_bp: int,
    lease: timedelta,
    now: datetime,
) -> Route:
    """The row with this share for the canary.

    Raises:
        Conflict: the canary in the row is not this holder's.
    """
    _check_holder(route, holder)
    return route.model_copy(
        update={
            "canary_bp": canary_bp,
            "shadow_bp": shadow_bp,
            "stage": stage,
            "expires_at": now + lease,
        }
    )


def renewed(route: Route, holder: str, lease: timedelta, now: datetime) -> Route:
    """The row with a new end of the lease.

    Raises:
        Conflict: the canary in the row is not this holder's.
    """
    _check_holder(route, holder)
    return route.model_copy(update={"expires_at": now + lease})


def closed(
    route: Route, holder: str, version: str, *, promote: bool, restore: Target | None = None
) -> Route:
    """The row without the canary, which is stable from now on or gone.

    Args:
        route: the present row.
        holder: whose canary.
        version: the candidate.
        promote: whether it becomes stable.
        restore: to undo a promotion, what was stable before.
    """
    if restore is not None and route.canary is None and route.stable.version == version:
        return route.model_copy(update={"stable": restore})
    if route.canary is None or route.holder != holder:
        return route
    promoted = promote and route.canary.version == version
    return route.model_copy(
        update={
            "stable": route.canary if promoted else route.stable,
            "canary": None,
            "canary_bp": 0,
            "shadow_bp": 0,
            "holder": "",
            "stage": "",
            "expires_at": None,
        }
    )


def _check_holder(route: Route, holder: str) -> None:
    if route.canary is None or route.holder != holder:
        raise Conflict(
            f"the canary of {route.endpoint} is {route.holder or 'nobody'}'s, not {holder}'s"
        )
