"""Which nodes are chosen: placement policies, and what they are told."""

from __future__ import annotations

from typing import Any

import pytest

from loomos.errors import InvalidInput
from loomos.jobs.cluster import LeaseRequest, ReleaseRequest, SchedulerConfig
from loomos.nexus import policies
from loomos.nexus.overview import Overview
from loomos.nexus.policies import SchedulingPolicy, WorkerStats, find_policy
from tests.unit.test_allocation import START, ask, cluster, give_back, node
from tests.unit.test_scheduling import decide


def test_policies_choose_between_nodes_that_would_do() -> None:
    def chosen(policy: str, **fields: Any) -> str:
        allocation = cluster(
            node("busy", max_ranks=4, cost_per_hour=3.0),
            node("idle", max_ranks=4, cost_per_hour=1.0),
        )
        ask(allocation, "other", node_ids=["busy"])
        decide(allocation)
        allocation.configure(SchedulerConfig(policy=policy))
        ask(allocation, "job", 1, **fields)
        return decide(allocation)[0]["job"][0]

    assert chosen("bin-pack") == "busy"
    assert chosen("spread") == "idle"
    assert chosen("cost-aware") == "idle"
    assert chosen("priority-first", priority=1) == "idle"
    assert chosen("priority-first", priority=5) == "busy"


def test_measured_steps_make_a_node_fast_or_slow() -> None:
    allocation = cluster(node("fast"), node("slow"))
    allocation.configure(SchedulerConfig(policy="performance-weighted"))
    for step_s, name in ((0.1, "fast"), (0.2, "slow")):
        ask(allocation, name, node_ids=[name])
        (lease,) = allocation.decide(START)[0]
        allocation.release(
            ReleaseRequest(job_id=name, run_id="r", epoch=lease.epoch, workload="w", step_s=step_s),
            START,
        )
    speeds = {n.info.node_id: n.speed for n in Overview(allocation).status(START).nodes}
    assert speeds == {"fast": 1.0, "slow": pytest.approx(0.85)}
    ask(allocation, "job")
    assert decide(allocation)[0] == {"job": ["fast"]}


def test_nodes_that_had_the_data_are_known_to_policies() -> None:
    class NearestData(SchedulingPolicy):
        def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
            return worker_stats["data_affinity"]

    policies._POLICIES[NearestData.name] = NearestData()
    try:
        allocation = cluster(node("a"), node("b"))
        allocation.configure(SchedulerConfig(policy="nearest-data"))
        ask(allocation, "first", node_ids=["b"], affinity=["sha256:1"])
        decide(allocation)
        give_back(allocation, "first")
        ask(allocation, "second", affinity=["sha256:1"])
        assert decide(allocation)[0] == {"second": ["b"]}
    finally:
        del policies._POLICIES[NearestData.name]


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="no 'fastest'; known: bin-pack, cost-aware"):
        cluster(node("a")).configure(SchedulerConfig(policy="fastest"))
    assert find_policy("bin-pack").name == "bin-pack"
