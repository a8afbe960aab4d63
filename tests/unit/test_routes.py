"""Picking an arm, and what a rollout may do to a route row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loomos.errors import Conflict
from loomos.jobs.serving import EndpointSpec, Route, Target
from loomos.rollouts import rows
from loomos.serving.routes import canary_share, is_shadowed, pick

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=15)
CANDIDATE = Target(version="m@bbbbbbbb")
HOLDER = "canary/chat/run-1"


def make_route(**changes: Any) -> Route:
    fields = {
        "endpoint": "chat",
        "generation": 1,
        "spec": EndpointSpec(model="m"),
        "stable": Target(version="m@aaaaaaaa"),
        "issued_at": NOW,
        "salt": "salt",
    }
    return Route.model_validate({**fields, **changes})


def on_trial(share: int, shadow: int = 0) -> Route:
    opened = rows.opened(make_route(), CANDIDATE, HOLDER, LEASE, NOW)
    return rows.with_traffic(opened, HOLDER, "s", share, shadow, LEASE, NOW)


@pytest.mark.parametrize("share", [100, 500, 2500, 5000, 9900])
def test_the_share_that_is_picked_is_the_share_that_was_asked(share: int) -> None:
    route = on_trial(share)
    n = 50_000
    picked = sum(pick(route, f"user-{i}", NOW) == "canary" for i in range(n)) / n
    deviation = (share / 10_000 * (1 - share / 10_000) / n) ** 0.5
    assert abs(picked - share / 10_000) < 4 * deviation


def test_users_of_the_canary_stay_when_its_share_grows() -> None:
    small = on_trial(500)
    large = small.model_copy(update={"canary_bp": 2500})
    users = [f"user-{i}" for i in range(5000)]
    first = {user for user in users if pick(small, user, NOW) == "canary"}
    second = {user for user in users if pick(large, user, NOW) == "canary"}
    assert first and first < second


def test_all_and_nothing_are_exact() -> None:
    users = [f"user-{i}" for i in range(2000)]
    assert all(pick(on_trial(10_000), user, NOW) == "canary" for user in users)
    assert all(pick(on_trial(0), user, NOW) == "stable" for user in users)


def test_a_lapsed_lease_gives_everything_back_to_stable() -> None:
    route = on_trial(10_000, shadow=10_000)
    later = NOW + LEASE
    assert canary_share(route, later - timedelta(milliseconds=1)) == 10_000
    assert canary_share(route, later) == 0
    assert pick(route, "user", later) == "stable"
    assert is_shadowed(route, "user", NOW) and not is_shadowed(route, "user", later)


def test_another_rollout_has_another_split() -> None:
    first = on_trial(5000)
    second = first.model_copy(update={"salt": "other"})
    users = [f"user-{i}" for i in range(2000)]
    same = sum(pick(first, user, NOW) == pick(second, user, NOW) for user in users)
    assert 0.45 < same / 2000 < 0.55


def test_a_second_canary_is_refused_while_the_first_is_alive() -> None:
    route = on_trial(500)
    other = Target(version="m@cccccccc")
    with pytest.raises(Conflict, match="has a canary already"):
        rows.opened(route, other, "canary/chat/run-2", LEASE, NOW)
    assert rows.opened(route, other, "canary/chat/run-2", LEASE, NOW + LEASE).canary == other


def test_what_is_stable_cannot_be_on_trial() -> None:
    with pytest.raises(Conflict, match="is stable at chat already"):
        rows.opened(make_route(), Target(version="m@aaaaaaaa"), HOLDER, LEASE, NOW)


def test_only_the_holder_changes_the_traffic() -> None:
    route = on_trial(500)
    for change in (
        lambda: rows.with_traffic(route, "somebody", "s", 10_000, 0, LEASE, NOW),
        lambda: rows.renewed(route, "somebody", LEASE, NOW),
    ):
        with pytest.raises(Conflict, match="not somebody's"):
            change()
    assert rows.closed(route, "somebody", CANDIDATE.version, promote=True) == route


def test_opening_and_closing_twice_changes_nothing_more() -> None:
    opened = rows.opened(make_route(), CANDIDATE, HOLDER, LEASE, NOW)
    assert rows.opened(opened, CANDIDATE, HOLDER, LEASE, NOW + LEASE) == opened
    promoted = rows.closed(opened, HOLDER, CANDIDATE.version, promote=True)
    assert promoted.stable == CANDIDATE and promoted.canary is None and promoted.holder == ""
    assert rows.closed(promoted, HOLDER, CANDIDATE.version, promote=True) == promoted
    back = rows.closed(opened, HOLDER, CANDIDATE.version, promote=False)
    assert back.stable == make_route().stable and back.canary is None and back.canary_bp == 0


def test_an_abort_that_came_too_late_restores_what_was_stable() -> None:
    opened = rows.opened(make_route(), CANDIDATE, HOLDER, LEASE, NOW)
    promoted = rows.closed(opened, HOLDER, CANDIDATE.version, promote=True)
    before = make_route().stable
    restored = rows.closed(promoted, HOLDER, CANDIDATE.version, promote=False, restore=before)
    assert restored.stable == before
