"""Scheduling rules: backfill, preemption, deadlines, shares, quotas, elastic gangs, forecasts."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scheduler_sim
from benchmarks.scheduler_sim import Job, Simulation, nodes
from loomos.jobs.cluster import LeaseRequest, Quota, SchedulerConfig
from loomos.manifest import NodeRange, Resources
from loomos.nexus.allocation import Allocation
from loomos.nexus.overview import Overview
from tests.unit.test_allocation import START, ask, cluster, give_back, node

MINUTE = timedelta(minutes=1)


def decide(allocation: Allocation, at_min: float = 0) -> tuple[dict[str, list[str]], list[str]]:
    """Who got which nodes, and who was asked to give theirs back."""
    given, asked_back = allocation.decide(START + at_min * MINUTE)
    return (
        {lease.job_id: [n.node_id for n in lease.nodes] for lease in given},
        [lease.job_id for lease, _ in asked_back],
    )


def whys(allocation: Allocation) -> dict[str, str]:
    return {queued.job_id: queued.reason for queued in Overview(allocation).status(START).queue}


# --- order ---


def test_within_a_class_the_earliest_deadline_goes_first() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "old")
    ask(allocation, "late", 1, deadline=START + 60 * MINUTE)
    ask(allocation, "soon", 2, deadline=START + 30 * MINUTE)
    ask(allocation, "urgent", 3, priority=2)
    order = []
    for _ in range(4):
        (job,) = decide(allocation)[0]
        order.append(job)
        give_back(allocation, job)
    assert order == ["urgent", "soon", "late", "old"]


def test_projects_share_by_weight() -> None:
    allocation = cluster(*(node(f"n{i}") for i in range(9)))
    allocation.configure(SchedulerConfig(weights={"b": 2.0}))
    for number in range(9):
        ask(allocation, f"a{number}", number, project="a")
        ask(allocation, f"b{number}", 100 + number, project="b")
    given, _ = decide(allocation)
    assert sum(job.startswith("b") for job in given) == 6
    shares = {s.project: s.dominant_share for s in Overview(allocation).status(START).shares}
    assert shares == {"a": pytest.approx(3 / 9), "b": pytest.approx(6 / 9)}


def test_the_share_is_that_of_the_scarcest_resource() -> None:
    """Two of the paper's users: one takes memory, one cores; both end at the same share."""
    big = node("n", max_ranks=100, cpu_count=9, memory_bytes=18 * 2**30)
    allocation = cluster(big)
    for number in range(9):
        ask(allocation, f"m{number}", resources=Resources(cpu=1, memory_gb=4), project="m")
        ask(allocation, f"c{number}", resources=Resources(cpu=3, memory_gb=1), project="c")
    given, _ = decide(allocation)
    assert sorted(given) == ["c0", "c1", "m0", "m1", "m2"]
    shares = {s.project: s.dominant_share for s in Overview(allocation).status(START).shares}
    assert shares == {"m": pytest.approx(2 / 3), "c": pytest.approx(2 / 3)}


def test_a_project_at_its_quota_waits_aside() -> None:
    allocation = cluster(node("a"), node("b"), node("c"))
    allocation.configure(SchedulerConfig(quotas={"x": Quota(nodes=1)}))
    ask(allocation, "x1", project="x")
    ask(allocation, "x2", 1, project="x")
    ask(allocation, "y1", 2, project="y")
    assert sorted(decide(allocation)[0]) == ["x1", "y1"]
    assert whys(allocation) == {"x2": "project x may hold 1 nodes and would hold 2"}


def test_an_elastic_gang_grows_within_its_quota() -> None:
    allocation = cluster(*(node(n) for n in "abc"))
    allocation.configure(SchedulerConfig(quotas={"x": Quota(nodes=2)}))
    ask(allocation, "job", project="x", resources=Resources(nodes=NodeRange(min=1, max=3)))
    assert decide(allocation)[0] == {"job": ["a", "b"]}
    assert decide(allocation, 10) == ({}, [])


def test_all_gpus_of_a_node_count_against_a_quota() -> None:
    allocation = cluster(node("g", gpus=["H100"] * 4, max_ranks=4))
    allocation.configure(SchedulerConfig(quotas={"x": Quota(gpus=2)}))
    ask(allocation, "job", project="x")
    assert decide(allocation)[0] == {}
    assert whys(allocation) == {"job": "project x may hold 2 gpus and would hold 4"}


def test_who_waits_too_long_goes_first_and_is_not_preempted() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "patient", priority=5)
    ask(allocation, "urgent", 1, priority=1)
    assert decide(allocation, 12 * 60)[0] == {"patient": ["a"]}
    assert decide(allocation, 12 * 60 + 1) == ({}, [])


# --- room ---


def test_nodes_are_shared_by_all_that_requests_name() -> None:
    allocation = cluster(node("a", max_ranks=8, cpu_count=8, memory_bytes=16 * 2**30))
    for number in range(3):
        ask(allocation, f"job{number}", number, resources=Resources(memory_gb=8))
    assert sorted(decide(allocation)[0]) == ["job0", "job1"]


def test_gpus_of_a_node_are_shared_by_index() -> None:
    allocation = cluster(node("g", gpus=["H100"] * 4, max_ranks=4))
    for number, count in enumerate((1, 2, 2)):
        ask(allocation, f"job{number}", number, resources=Resources(gpu_count=count))
    given, _ = allocation.decide(START)
    assert {lease.job_id: lease.devices for lease in given} == {"job0": [[0]], "job1": [[1, 2]]}
    give_back(allocation, "job0")
    (lease,) = allocation.decide(START)[0]
    assert (lease.job_id, lease.devices) == ("job2", [[0, 3]])


@pytest.mark.parametrize(
    ("needs", "found"),
    [
        ({"node_type": "gpu_node"}, "far"),
        ({"region": "eu"}, "near"),
        ({"node_labels": {"rack": "7"}}, "near"),
        ({"min_bandwidth_gbps": 10}, "far"),
        ({"max_latency_ms": 1}, "near"),
        ({"max_latency_ms": 1, "region": "us"}, None),
    ],
)
def test_constraints_choose_nodes(needs: dict[str, Any], found: str | None) -> None:
    near = node("near", region="eu", labels={"rack": "7"}, bandwidth_gbps=1.0, latency_ms=0.5)
    far = node("far", region="us", node_type="gpu_node", bandwidth_gbps=25.0, latency_ms=40.0)
    allocation = cluster(near, far, node("plain"))
    ask(allocation, "job", resources=Resources.model_validate(needs))
    assert decide(allocation)[0] == ({"job": [found]} if found else {})


def test_nodes_that_stand_by_are_for_those_who_lost_theirs() -> None:
    allocation = cluster(node("a"), node("b"))
    allocation.configure(SchedulerConfig(standby_nodes=1))
    ask(allocation, "one")
    ask(allocation, "two", 1)
    assert decide(allocation)[0] == {"one": ["a"]}
    ask(allocation, "back", 2, is_recovery=True)
    # "two" is the head, and no node may be kept for it that stands by.
    assert decide(allocation)[0] == {"back": ["b"]}
    ask(allocation, "wide", 3, nodes=2)
    assert "1 must stand by" in whys(allocation)["wide"]


# --- backfill ---


def test_a_short_request_fills_the_gap_before_the_head() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "running", estimate=60 * MINUTE)
    decide(allocation)
    ask(allocation, "wide", 1, nodes=2)
    ask(allocation, "long", 2, estimate=61 * MINUTE)
    ask(allocation, "unknown", 3)
    ask(allocation, "short", 4, estimate=59 * MINUTE)
    assert decide(allocation)[0] == {"short": ["b"]}
    assert whys(allocation)["wide"].endswith("by estimate until 2026-01-01T01:00:00Z")


def test_a_long_request_may_use_what_the_head_will_leave() -> None:
    allocation = cluster(node("a"), node("b"), node("c"))
    ask(allocation, "running", estimate=60 * MINUTE)
    decide(allocation)
    ask(allocation, "wide", 1, nodes=3)
    ask(allocation, "long", 2)
    assert decide(allocation)[0] == {}
    allocation.request(lease_request("wide", nodes=2), START)
    assert decide(allocation)[0] == {"wide": ["b", "c"]}
    ask(allocation, "gang", 3, nodes=2)
    ask(allocation, "long", 2)
    give_back(allocation, "running")
    assert decide(allocation)[0] == {"long": ["a"]}  # older than the gang, and it fits


def test_without_estimates_what_the_head_could_use_is_kept() -> None:
    allocation = cluster(node("a"), node("b"), node("other", region="far"))
    near = {"region": ""}
    ask(allocation, "running", resources=Resources.model_validate({"node_labels": {}}))
    decide(allocation)
    del near
    ask(allocation, "wide", 1, nodes=3)
    ask(allocation, "small", 2, estimate=MINUTE)
    assert decide(allocation) == ({}, [])


def test_who_was_let_past_and_takes_too_long_is_asked_back() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "running", estimate=60 * MINUTE)
    decide(allocation)
    ask(allocation, "wide", 1, nodes=2)
    ask(allocation, "short", 2, estimate=30 * MINUTE)
    assert decide(allocation)[0] == {"short": ["b"]}
    assert decide(allocation, 40) == ({}, [])  # the head could not start yet anyway
    give_back(allocation, "running")
    assert decide(allocation, 41) == ({}, ["short"])
    assert decide(allocation, 41) == ({}, [])  # asked once
    give_back(allocation, "short")
    assert decide(allocation, 42)[0] == {"wide": ["a", "b"]}


def lease_request(job: str, **fields: Any) -> LeaseRequest:
    count = fields.pop("nodes", 1)
    return LeaseRequest(
        job_id=job,
        run_id="r",
        ticket=1,
        submitted_at=START,
        resources=fields.pop("resources", Resources(nodes=count)),
        **fields,
    )


@pytest.mark.parametrize("seed", range(40))
def test_backfill_never_delays_the_head(seed: int) -> None:
    """A reservation, once made, is kept or bettered, if everything takes as long as estimated."""
    rng = random.Random(seed)
    jobs = []
    for number in range(14):
        takes = rng.randint(1, 40) * 60.0
        jobs.append(
            Job(
                job_id=f"j{number:02}",
                submit_s=rng.randint(0, 30) * 60.0,
                work_s=takes,
                nodes=rng.randint(1, 4),
                gpus=rng.choice([1, 2, 4]),
                priority=3,
                project="vision",
                estimate_s=takes,
            )
        )
    promised: dict[str, float] = {}

    class Watched(Simulation):
        def _decide(self) -> None:
            super()._decide()
            for queued in Overview(self.cluster).status(self._at(self.now)).queue[:1]:
                _, known, at = queued.reason.partition("by estimate until ")
                if known:
                    starts_at = (datetime.fromisoformat(at) - scheduler_sim.START).total_seconds()
                    promised.setdefault(queued.job_id, starts_at)

    run = Watched(jobs=jobs, config=SchedulerConfig(), infos=nodes(4, 4)).run()
    assert promised
    for job_id, at in promised.items():
        started = run.by_id[job_id].started_s
        assert started is not None and started <= at + 1e-6
    assert all(job.ended_s is not None for job in jobs)


# --- preemption ---


def test_a_higher_class_takes_the_fewest_nodes_of_the_lowest_class() -> None:
    allocation = cluster(*(node(n) for n in "abcd"))
    ask(allocation, "high", priority=2)
    ask(allocation, "low", 1, priority=5)
    ask(allocation, "gang", 2, priority=4, nodes=2)
    assert len(decide(allocation)[0]) == 3
    ask(allocation, "urgent", 3, priority=1)
    assert decide(allocation) == ({}, ["low"])
    assert decide(allocation) == ({}, [])
    give_back(allocation, "low")
    ask(allocation, "low", 1, priority=5)
    assert list(decide(allocation)[0]) == ["urgent"]
    ask(allocation, "urgent2", 4, priority=1, nodes=2)
    assert decide(allocation) == ({}, ["gang"])


def test_equal_classes_do_not_preempt_nor_do_those_who_opted_out_give() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "equal", priority=2)
    ask(allocation, "firm", 1, priority=5, is_preemptible=False)
    decide(allocation)
    ask(allocation, "urgent", 2, priority=2)
    assert decide(allocation) == ({}, [])


def test_preemption_that_would_not_help_is_left_alone() -> None:
    allocation = cluster(node("a"), node("b"))
    ask(allocation, "low", priority=5)
    ask(allocation, "firm", 1, priority=1)
    decide(allocation)
    ask(allocation, "wide", 2, priority=1, nodes=2)
    assert decide(allocation) == ({}, [])


def test_a_lost_holder_of_a_revoked_lease_frees_it() -> None:
    allocation = cluster(node("a"))
    ask(allocation, "low", priority=5)
    decide(allocation)
    ask(allocation, "urgent", 1, priority=1)
    assert decide(allocation) == ({}, ["low"])
    allocation.register(node("a", incarnation="2"), START)
    assert decide(allocation) == ({"urgent": ["a"]}, [])


# --- elastic gangs ---


def test_an_elastic_gang_makes_room_and_grows_again() -> None:
    allocation = cluster(*(node(n) for n in "abc"))
    elastic = Resources(nodes=NodeRange(min=1, max=3))
    ask(allocation, "elastic", resources=elastic)
    assert decide(allocation)[0] == {"elastic": ["a", "b", "c"]}
    ask(allocation, "other", 1)
    assert decide(allocation) == ({}, ["elastic"])
    give_back(allocation, "elastic")
    ask(allocation, "elastic", resources=elastic)
    given, _ = decide(allocation)
    assert {job: len(names) for job, names in given.items()} == {"elastic": 2, "other": 1}
    give_back(allocation, "other")
    assert decide(allocation, 0.5) == ({}, [])
    assert decide(allocation, 2) == ({}, ["elastic"])


# --- all together ---


def test_three_competing_gangs_never_deadlock() -> None:
    rng = random.Random(0)
    allocation = cluster(*(node(f"n{i}") for i in range(4)))
    for turn in range(200):
        gangs = {f"gang{i}": rng.randint(1, 4) for i in range(3)}
        waiting = list(gangs)
        rng.shuffle(waiting)
        served: list[str] = []
        while len(served) < 3:
            if waiting and rng.random() < 0.6:
                name = waiting.pop()
                ask(allocation, name, turn, nodes=gangs[name], priority=rng.randint(1, 5))
            given, asked_back = allocation.decide(START)
            for lease, _ in asked_back:  # it checkpoints, comes back, and asks again
                give_back(allocation, lease.job_id)
                served.remove(lease.job_id)
                assert lease.request is not None
                allocation.request(lease.request, START)
            served += [lease.job_id for lease in given]
            held = [info.node_id for le in allocation.leases.values() for info in le.nodes]
            assert len(held) == len(set(held))
            if not given and not waiting and not asked_back:
                give_back(allocation, next(iter(allocation.leases.values())).job_id)
        for lease in list(allocation.leases.values()):
            give_back(allocation, lease.job_id)
        assert allocation.queue == []


events = st.lists(
    st.tuples(
        st.sampled_from(["ask", "release", "lose", "register", "time"]),
        st.integers(0, 7),
        st.integers(1, 3),
        st.integers(1, 5),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(events)
def test_nothing_is_held_twice_whatever_happens(script: list[tuple[str, int, int, int]]) -> None:
    allocation = cluster(*(node(f"n{i}", max_ranks=2, gpus=["G", "G"]) for i in range(4)))
    now = START
    for second, (what, who, count, priority) in enumerate(script):
        if what == "ask" and not any(le.job_id == f"job{who}" for le in allocation.leases.values()):
            ask(
                allocation,
                f"job{who}",
                second,
                priority=priority,
                project=f"p{who % 2}",
                estimate=count * MINUTE if who % 3 else None,
                resources=Resources(
                    nodes=NodeRange(min=count, max=count + who % 2), gpu_count=who % 3
                ),
            )
        elif what == "release":
            for lease in list(allocation.leases.values())[:1]:
                give_back(allocation, lease.job_id)
        elif what == "lose":
            allocation.lose(f"n{who % 4}", allocation.nodes[f"n{who % 4}"].info.incarnation, now)
        elif what == "register":
            name = f"n{who % 4}"
            again = node(name, max_ranks=2, gpus=["G", "G"], incarnation=str(second))
            allocation.register(again, now)
        else:
            now += count * MINUTE
        allocation.decide(now)
        held: set[tuple[str, int]] = set()
        for lease in allocation.leases.values():
            assert len({info.node_id for info in lease.nodes}) == len(lease.nodes)
            for info, devices in zip(lease.nodes, lease.devices, strict=True):
                assert len(devices) == lease.request.resources.gpu_count  # type: ignore[union-attr]
                for device in devices:
                    assert (info.node_id, device) not in held
                    held.add((info.node_id, device))
        status = Overview(allocation).status(now)
        assert all(n.ranks_used <= n.info.max_ranks for n in status.nodes)
        assert [q.position for q in status.queue] == list(range(1, len(allocation.queue) + 1))
        again_made = Allocation.from_state(allocation.to_state())
        assert Overview(again_made).status(now) == status
