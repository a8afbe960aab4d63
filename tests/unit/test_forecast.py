"""When a request would be served, and what would serve it sooner."""

from __future__ import annotations

from loomos.manifest import Resources
from loomos.nexus.advice import advise
from loomos.nexus.forecast import forecast
from tests.unit.test_allocation import START, ask, cluster, node
from tests.unit.test_scheduling import MINUTE, decide, lease_request


def test_a_forecast_follows_estimates() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "running", estimate=60 * MINUTE)
    decide(allocation)
    ask(allocation, "ahead", 1, estimate=30 * MINUTE)
    found = forecast(allocation, lease_request("new", estimate=10 * MINUTE), START)
    assert found.starts_at == START + 60 * MINUTE  # submitted before "ahead"
    later = lease_request("new", estimate=10 * MINUTE, priority=4)
    assert forecast(allocation, later, START).ends_at == START + 100 * MINUTE
    urgent = lease_request("new", estimate=10 * MINUTE, priority=1)
    assert forecast(allocation, urgent, START).starts_at == START
    impossible = lease_request("new", nodes=9)
    assert forecast(allocation, impossible, START).reason.startswith("needs 9 ready nodes")
    assert [w.request.job_id for w in allocation.queue] == ["ahead"]


def test_a_forecast_is_hopeful_where_nothing_is_known() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "running")
    decide(allocation)
    assert forecast(allocation, lease_request("new"), START).starts_at == START


def test_advice_is_what_was_tried() -> None:
    allocation = cluster(
        node("a", region="eu"), node("b", region="us", gpus=["G"] * 4, max_ranks=4)
    )
    ask(allocation, "holder", node_ids=["a"])
    decide(allocation)
    ask(allocation, "near", 2, resources=Resources(region="eu", gpu_count=2))
    ask(allocation, "huge", 3, resources=Resources(memory_gb=9))
    assert {a.job_id: a.change for a in advise(allocation, START)} == {
        "near": "leave out resources.region",
        "huge": "halve resources.memory to 4608Mi",
        "holder": "set runtime.estimated_duration",
    }
    ask(allocation, "wide", 1, nodes=2)
    # What is free is kept for the gang now, so the others would gain nothing.
    assert {a.job_id: a.change for a in advise(allocation, START)} == {
        "wide": "set resources.nodes to {min: 1, max: 2}",
        "holder": "set runtime.estimated_duration",
    }
    assert len(allocation.queue) == 3
