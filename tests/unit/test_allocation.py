"""Gang leases: all or nothing, by priority then age, revoked when nodes are lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomos.errors import Conflict, NotFound
from loomos.jobs.cluster import LeaseRequest, NodeCommand, NodeInfo, ReleaseRequest
from loomos.jobs.states import NodeState
from loomos.manifest import NodeRange, Resources
from loomos.nexus.allocation import Allocation
from loomos.nexus.overview import Overview

START = datetime(2026, 1, 1, tzinfo=UTC)


def node(name: str, **facts: Any) -> NodeInfo:
    return NodeInfo.model_validate(
        {
            "node_id": name,
            "incarnation": "1",
            "address": "127.0.0.1",
            "max_ranks": 1,
            "cpu_count": 2,
            "memory_bytes": 2**33,
            "storage_bytes": 2**40,
            **facts,
        }
    )


def cluster(*nodes: NodeInfo) -> Allocation:
    allocation = Allocation()
    for info in nodes:
        allocation.register(info, START)
    return allocation


def ask(allocation: Allocation, job: str, at_s: int = 0, **fields: Any) -> None:
    resources = fields.pop("resources", Resources(nodes=fields.pop("nodes", 1)))
    submitted_at = START + timedelta(seconds=at_s)
    request = LeaseRequest(
        job_id=job, run_id="r", ticket=1, submitted_at=submitted_at, resources=resources, **fields
    )
    allocation.request(request, START)


def granted(allocation: Allocation) -> dict[str, list[str]]:
    return {lease.job_id: [n.node_id for n in lease.nodes] for lease in allocation.decide(START)[0]}


def give_back(allocation: Allocation, job: str) -> None:
    epoch = next(lease.epoch for lease in allocation.leases.values() if lease.job_id == job)
    allocation.release(ReleaseRequest(job_id=job, run_id="r", epoch=epoch), START)


def test_two_jobs_run_and_the_third_follows_when_a_node_frees() -> None:
    allocation = cluster(node("a"), node("b"))
    for second, job in enumerate(("one", "two", "three")):
        ask(allocation, job, second)
    assert granted(allocation) == {"one": ["a"], "two": ["b"]}
    assert granted(allocation) == {}
    give_back(allocation, "one")
    assert granted(allocation) == {"three": ["a"]}


def test_a_higher_priority_goes_first() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "running")
    allocation.decide(START)[0]
    ask(allocation, "early", 1, priority=3)
    ask(allocation, "urgent", 2, priority=1)
    give_back(allocation, "running")
    assert granted(allocation) == {"urgent": ["a"]}


def test_a_gang_gets_all_its_nodes_or_none() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "small")
    allocation.decide(START)[0]
    ask(allocation, "gang", 1, nodes=2)
    assert granted(allocation) == {}
    give_back(allocation, "small")
    assert granted(allocation) == {"gang": ["a", "b"]}


def test_small_jobs_do_not_starve_a_gang() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "first")
    allocation.decide(START)[0]
    ask(allocation, "gang", 1, nodes=2)
    ask(allocation, "small", 2)
    assert granted(allocation) == {}
    assert [q.job_id for q in Overview(allocation).status(START).queue] == ["gang", "small"]


def test_a_request_that_no_node_can_serve_blocks_nobody() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "impossible", resources=Resources(gpu_count=8, gpu_type="H100"), priority=1)
    ask(allocation, "possible", 1)
    assert granted(allocation) == {"possible": ["a"]}
    (waiting,) = Overview(allocation).status(START).queue
    assert waiting.reason == (
        "needs 1 ready nodes with what it asks for; 0 of 1 known nodes have it"
    )


def test_an_elastic_gang_takes_as_many_nodes_as_divide_its_batch() -> None:
    allocation = cluster(*(node(n) for n in "abc"))
    elastic = Resources(nodes=NodeRange(min=1, max=4))
    ask(allocation, "job", resources=elastic, batch_size=8)
    assert granted(allocation) == {"job": ["a", "b"]}


def test_a_new_incarnation_ends_the_leases_of_the_old() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "gang", nodes=2)
    allocation.decide(START)[0]
    ((lease, message),) = allocation.register(node("b", incarnation="2"), START)
    assert (lease.job_id, message.lost_nodes) == ("gang", ["b"])
    assert allocation.leases == {}
    assert allocation.nodes["b"].state == NodeState.READY


def test_the_loss_of_an_old_incarnation_is_no_news() -> None:
    allocation = cluster(node("a", incarnation="2"))
    assert allocation.lose("a", "1", START) == []
    assert allocation.nodes["a"].state == NodeState.READY


def test_a_drained_node_is_cordoned_once_its_lease_is_back() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "job")
    allocation.decide(START)[0]
    ((_, message),) = allocation.command(NodeCommand(node_id="a", action="drain"), START)
    assert message.lost_nodes == []
    assert allocation.nodes["a"].state == NodeState.DRAINING
    ask(allocation, "job", 1)
    give_back(allocation, "job")
    assert allocation.nodes["a"].state == NodeState.CORDONED
    assert granted(allocation) == {"job": ["b"]}


def test_a_cordon_outlives_a_restart_of_the_worker() -> None:
    allocation = cluster(node("a"))
    allocation.command(NodeCommand(node_id="a", action="cordon"), START)
    allocation.register(node("a", incarnation="2"), START)
    assert allocation.nodes["a"].state == NodeState.CORDONED


def test_commands_on_nodes_that_are_not_there_are_refused() -> None:
    allocation = cluster(node("a"))
    with pytest.raises(NotFound, match="no node 'z'; known: a"):
        allocation.command(NodeCommand(node_id="z", action="drain"), START)
    with pytest.raises(Conflict, match="only lost nodes are removed"):
        allocation.command(NodeCommand(node_id="a", action="remove"), START)


def test_a_node_with_gpus_is_leased_whole() -> None:
    allocation = cluster(node("g", gpus=["H100", "H100"], max_ranks=2))
    ask(allocation, "one")
    ask(allocation, "two", 1)
    assert granted(allocation) == {"one": ["g"]}


def test_releasing_twice_is_harmless() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "job")
    (lease,) = allocation.decide(START)[0]
    release = ReleaseRequest(job_id="job", run_id="r", epoch=lease.epoch)
    allocation.release(release, START)
    ask(allocation, "next", 1)
    allocation.decide(START)[0]
    allocation.release(release, START)
    assert [lease.job_id for lease in allocation.leases.values()] == ["next"]


def test_the_state_survives_a_new_run() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "one", nodes=2)
    allocation.decide(START)[0]
    ask(allocation, "two", 1)
    again = Allocation.from_state(allocation.to_state())
    assert Overview(again).status(START) == Overview(allocation).status(START)
    assert again.next_epoch == 2


events = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 5), st.integers(1, 3), st.integers(1, 5)),
        st.tuples(st.just("release"), st.integers(0, 5), st.just(0), st.just(0)),
        st.tuples(st.just("lose"), st.integers(0, 3), st.just(0), st.just(0)),
        st.tuples(st.just("register"), st.integers(0, 3), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(events)
def test_no_rank_is_ever_leased_twice(script: list[tuple[str, int, int, int]]) -> None:
    allocation = cluster(*(node(f"n{i}", max_ranks=2) for i in range(4)))
    epochs: list[int] = []
    for second, (what, who, count, priority) in enumerate(script):
        if what == "ask":
            ask(allocation, f"job{who}", second, nodes=count, priority=priority)
        elif what == "release":
            for lease in list(allocation.leases.values()):
                if lease.job_id == f"job{who}":
                    give_back(allocation, lease.job_id)
                    break
        elif what == "lose":
            known = allocation.nodes[f"n{who}"].info.incarnation
            allocation.lose(f"n{who}", known, START)
        else:
            allocation.register(node(f"n{who}", max_ranks=2, incarnation=str(second)), START)
        epochs += [lease.epoch for lease in allocation.decide(START)[0]]
        for status in Overview(allocation).status(START).nodes:
            assert status.ranks_used <= status.info.max_ranks
            assert status.state != NodeState.LOST or not status.jobs
    assert epochs == sorted(set(epochs))
