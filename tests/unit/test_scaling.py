"""Who holds an endpoint's models, as the queue grows and servers come and go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from loomos.jobs.serving import EndpointSpec, Replicas, Route, ServerStatus, Target
from loomos.serving.scaling import SHRINK_AFTER_S, Scale


def route(replicas: list[str], fewest: int = 1, most: int = 3) -> Route:
    limits = Replicas(min=fewest, max=most, queue_per_replica=4)
    return Route(
        endpoint="chat",
        generation=1,
        spec=EndpointSpec(model="m", replicas=limits),
        stable=Target(version="m@aaaaaaaa"),
        replicas=replicas,
        issued_at=datetime.now(UTC),
    )


def server(name: str, queue: int = 0, **changes: Any) -> ServerStatus:
    fields = {
        "server_id": name,
        "incarnation": "i",
        "url": "http://x",
        "at": datetime.now(UTC),
        "waiting": {"chat": queue},
    }
    return ServerStatus.model_validate({**fields, **changes})


def test_the_first_servers_are_those_with_the_least_on_them() -> None:
    servers = [server("a", loaded=["x@1", "y@1"]), server("b", loaded=["x@1"]), server("c")]
    placement = Scale().decide(route([], fewest=2), servers)
    assert placement is not None and placement.replicas == ["c", "b"]


def test_one_more_holds_it_when_the_queue_grows_and_never_more_than_the_most() -> None:
    servers = [server("a", 5), server("b"), server("c"), server("d")]
    placement = Scale().decide(route(["a"]), servers)
    assert placement is not None and placement.replicas == ["a", "b"]
    servers = [server("a", 90), server("b"), server("c"), server("d")]
    placement = Scale().decide(route(["a", "b"]), servers)
    assert placement is not None and placement.replicas == ["a", "b", "c"]
    assert Scale().decide(route(["a", "b", "c"]), servers) is None


def test_one_fewer_holds_it_only_after_a_quiet_minute() -> None:
    now = [0.0]
    scale = Scale(lambda: now[0])
    servers = [server("a"), server("b")]
    now[0] = 1.0
    assert scale.decide(route(["a", "b"]), servers) is None
    now[0] = SHRINK_AFTER_S
    assert scale.decide(route(["a", "b"]), servers) is None
    now[0] = SHRINK_AFTER_S + 1
    placement = scale.decide(route(["a", "b"]), servers)
    assert placement is not None and placement.replicas == ["a"]


def test_a_rush_in_between_begins_the_minute_again() -> None:
    now = [1.0]
    scale = Scale(lambda: now[0])
    quiet = [server("a"), server("b")]
    assert scale.decide(route(["a", "b"]), quiet) is None
    now[0] = 50.0
    assert scale.decide(route(["a", "b"]), [server("a", 8), server("b")]) is None
    now[0] = 70.0
    assert scale.decide(route(["a", "b"]), quiet) is None


def test_a_server_that_is_silent_or_drains_is_replaced() -> None:
    silent = server("a", at=datetime.now(UTC) - timedelta(seconds=60))
    placement = Scale().decide(route(["a"]), [silent, server("b")])
    assert placement is not None and placement.replicas == ["b"]
    assert "a lost" in placement.reason
    draining = server("a", is_draining=True)
    placement = Scale().decide(route(["a"]), [draining, server("b")])
    assert placement is not None and placement.replicas == ["b"]


def test_without_another_the_lost_one_is_kept_since_it_may_come_back() -> None:
    assert Scale().decide(route(["a"]), []) is None
