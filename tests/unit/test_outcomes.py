"""Outcomes and route rows: polls cost what lives, and readers miss nothing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loomos.errors import Conflict, NotFound
from loomos.jobs.serving import Route, Target
from loomos.serving import outcomes
from loomos.serving.outcomes import RecordWriters, find_ends, read_between, read_new, was_read
from loomos.serving.table import RouteTable, change_route, close_route, create_route, read_route
from loomos.storage._local import LocalStore
from loomos.storage.layout import ENDPOINTS_PREFIX, outcomes_prefix
from tests.unit.test_routes import make_route

PREFIX = outcomes_prefix("chat")


class Counting(LocalStore):
    """Counts the calls that a server would have to answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: Counter[str] = Counter()

    def children(self, prefix: str, after: str = "") -> list[str]:
        found = super().children(prefix, after)
        self.calls["list"] += 1
        self.calls["names"] += len(found)
        return found

    def objects(self, prefix: str, after: str = "") -> Any:
        self.calls["list"] += 1
        return super().objects(prefix, after)

    def cost(self, work: Any) -> Counter[str]:
        self.calls.clear()
        work()
        return Counter(self.calls)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


class Clock:
    """The time as servers and readers have it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        monkeypatch.setattr(outcomes, "now", lambda: self.now)

    def pass_by(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_poll_costs_the_same_however_often_servers_were_started(
    store: Counting, clock: Clock
) -> None:
    seen: list[int] = []
    cursors: dict[str, str] = {}
    costs = []
    for number in range(60):
        server = RecordWriters(store, f"serve-1-{number}")
        server.add(PREFIX, {"n": number})
        server.flush()
        batch = read_new(store, PREFIX, cursors)
        seen += [record["n"] for record in batch.records]
        cursors = batch.cursors
        costs.append(store.cost(lambda now=cursors: read_new(store, PREFIX, now)))  # type: ignore[misc]
        clock.pass_by(minutes=30)
    assert seen == list(range(60))
    assert max(cost["list"] for cost in costs) <= 5
    assert costs[-1] <= costs[10]
    assert len(cursors) <= 5
    # A reader who begins now finds the end as cheaply, and everything, if it wants that.
    assert store.cost(lambda: find_ends(store, PREFIX))["list"] <= 5
    assert len(read_new(store, PREFIX, {}).records) == 60


def test_readers_miss_nothing_over_hours_outages_and_limits(store: Counting, clock: Clock) -> None:
    servers = [RecordWriters(store, f"serve-{n}") for n in range(3)]
    written, read = 0, list[int]()
    cursors: dict[str, str] = {}
    for step in range(200):
        for number, server in enumerate(servers):
            server.add(PREFIX, {"n": written})
            written += 1
            is_away = (step // 5 + number) % 4 == 0  # for 35 minutes at a time
            if not is_away:
                server.flush()
        batch = read_new(store, PREFIX, cursors, limit=4)
        read += [record["n"] for record in batch.records]
        cursors = batch.cursors
        clock.pass_by(minutes=7)
    for server in servers:
        server.flush()
    for _ in range(400):
        batch = read_new(store, PREFIX, cursors, limit=4)
        read += [record["n"] for record in batch.records]
        cursors = batch.cursors
    assert sorted(read) == list(range(written))


def test_what_a_reader_has_had_between_two_cursors_is_found_again(
    store: Counting, clock: Clock
) -> None:
    servers = [RecordWriters(store, f"serve-{n}") for n in range(2)]
    history: list[tuple[dict[str, str], list[int]]] = []
    cursors = find_ends(store, PREFIX)
    for step in range(40):
        servers[step % 2].add(PREFIX, {"n": step})
        servers[step % 2].flush()
        batch = read_new(store, PREFIX, cursors)
        history.append((cursors, [record["n"] for record in batch.records]))
        cursors = batch.cursors
        clock.pass_by(minutes=11)
    history.append((cursors, []))
    for begin in (0, 7, 25):
        for end in (begin, begin + 1, 30, 40):
            wanted = sorted(n for _, records in history[begin:end] for n in records)
            found = read_between(store, PREFIX, history[begin][0], history[end][0])
            assert sorted(record["n"] for record in found) == wanted
    keys = [item.key for item in store.objects(PREFIX)]
    assert sum(was_read(key, history[30][0]) for key in keys) == 30


# --- route rows ---------------------------------------------------------------------------------


def test_endpoints_that_are_gone_cost_nothing(store: Counting) -> None:
    table = RouteTable(store)
    create_route(store, make_route(endpoint="lives"))
    for number in range(50):
        create_route(store, make_route(endpoint=f"e{number}"))
        table.refresh()
        close_route(store, f"e{number}", "me")
        changed = table.refresh()
        assert [(r.endpoint, r.is_closed) for r in changed] == [(f"e{number}", True)]
    assert store.cost(table.refresh) == {"list": 2}
    assert set(table.routes) == {"lives"}
    assert [item.key for item in store.objects(ENDPOINTS_PREFIX)] == [
        f"{ENDPOINTS_PREFIX}lives/routes/0000000001.json"
    ]
    with pytest.raises(NotFound):
        read_route(store, "e3")


def test_an_endpoint_made_anew_goes_on_counting(store: Counting) -> None:
    table, slow = RouteTable(store), RouteTable(store)
    create_route(store, make_route())
    change_route(store, "chat", "me", _served("s1"))
    slow.refresh()
    close_route(store, "chat", "me")
    close_route(store, "chat", "me")  # a retry
    again = create_route(store, make_route(issued_by="again"))
    assert again.generation == 4
    assert create_route(store, make_route(issued_by="again")) == again  # a retry
    table.refresh()
    assert table.routes["chat"] == again
    # One that saw neither the end nor the beginning does not stay with the old row.
    slow.refresh()
    assert slow.routes["chat"] == again


def test_closing_what_was_never_there_or_has_a_canary_is_refused(store: Counting) -> None:
    with pytest.raises(NotFound, match="no endpoint 'chat'"):
        close_route(store, "chat", "me")
    create_route(store, make_route(canary=Target(version="m@bbbbbbbb")))
    with pytest.raises(Conflict, match="canary on trial"):
        close_route(store, "chat", "me")


def _served(*servers: str) -> Any:
    def change(route: Route) -> Route:
        return route.model_copy(update={"replicas": list(servers)})

    return change
