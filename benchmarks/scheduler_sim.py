"""The scheduler's own code over two days' load of a big cluster, against FIFO and plain priority.

10,000 jobs on 256 nodes of 8 GPUs, shaped after the Philly trace (Jeon et al., USENIX ATC 2019):
most jobs take one GPU, some whole nodes, a few many nodes; durations are log-normal with a heavy
tail; arrivals follow the hour. Users overestimate; a tenth of the jobs has a deadline. Time is
simulated, decisions are real: `Allocation.decide` as the `Cluster` workflow calls it.

Goals: utilisation >= 95 % at saturation, nobody starves, <= 1 % of deadlines missed that an offline
bound shows avoidable (a fluid, preemptive earliest-deadline-first schedule without gangs meets
them).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from loomos.jobs.cluster import Lease, LeaseRequest, NodeInfo, ReleaseRequest, SchedulerConfig
from loomos.manifest import NodeRange, Resources
from loomos.nexus.allocation import Allocation

NEEDS_STACK = False
START = datetime(2026, 1, 5, tzinfo=UTC)
JOBS, NODES, GPUS_PER_NODE = 10_000, 256, 8
ARRIVE_OVER_S = 48 * 3600.0
"""Two days, over which the jobs are 1.1 times what the cluster could do."""
PROJECTS = ("vision", "language", "speech", "ranking", "robotics")
CHECKPOINT_S, RESTART_S = 20.0, 40.0
"""What a preemption costs: time until the nodes are back, and work to load the checkpoint."""


@dataclass
class Job:
    """One job of the load."""

    job_id: str
    submit_s: float
    work_s: float
    nodes: int
    gpus: int
    priority: int
    project: str
    estimate_s: float
    deadline_s: float | None = None
    most_nodes: int | None = None
    left_s: float = 0.0
    started_s: float | None = None
    running_since: float = 0.0
    ended_s: float | None = None
    preemptions: int = 0

    @property
    def total_gpus(self) -> int:
        """GPUs of the whole gang."""
        return self.nodes * self.gpus


def philly(seed: int, jobs: int = JOBS) -> list[Job]:
    """A load that comes in day and night, by day more than the cluster can do."""
    rng = random.Random(seed)
    made: list[Job] = []
    now = 0.0
    for number in range(jobs):
        hour = now / 3600 % 24
        rate = jobs / ARRIVE_OVER_S * (1 + 0.5 * math.sin((hour - 8) / 24 * 2 * math.pi))
        now += rng.expovariate(rate)
        nodes, gpus = rng.choices(
            [(1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8), (16, 8)],
            [52, 10, 10, 16, 6, 4, 1.6, 0.4],
        )[0]
        work = min(48 * 3600, max(60, rng.lognormvariate(math.log(2400), 1.4)))
        priority = rng.choices([1, 2, 3, 4, 5], [3, 12, 60, 15, 10])[0]
        has_deadline = rng.random() < 0.1
        made.append(
            Job(
                job_id=f"job-{number:05}",
                submit_s=now,
                work_s=work,
                nodes=nodes,
                gpus=gpus,
                priority=2 if has_deadline else priority,
                project=rng.choices(PROJECTS, [40, 25, 20, 10, 5])[0],
                estimate_s=work * rng.uniform(1.0, 3.0) * (0.7 if rng.random() < 0.05 else 1.0),
                deadline_s=now + work * rng.uniform(1.5, 4.0) + 600 if has_deadline else None,
            )
        )
    return made


def nodes(count: int, gpus: int) -> list[NodeInfo]:
    """Equal nodes."""
    return [
        NodeInfo(
            node_id=f"node-{number:03}",
            incarnation="1",
            address="10.0.0.1",
            max_ranks=gpus,
            cpu_count=96,
            memory_bytes=2**40,
            storage_bytes=2**42,
            gpus=["H100"] * gpus,
        )
        for number in range(count)
    ]


@dataclass
class Simulation:
    """Plays a load on a cluster."""

    jobs: Sequence[Job]
    config: SchedulerConfig
    infos: Sequence[NodeInfo]
    use_priority: bool = True
    use_deadlines: bool = True
    use_projects: bool = True
    now: float = 0.0
    decide_s: list[float] = field(default_factory=list)
    busy: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, GPUs in use, GPUs wanted by those who wait)."""

    def run(self) -> Simulation:
        """To the end of the last job."""
        self.cluster = Allocation(config=self.config)
        for info in self.infos:
            self.cluster.register(info, START)
        self.by_id = {job.job_id: job for job in self.jobs}
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, Any]] = []
        self.leases: dict[str, Lease] = {}
        self._in_use, self._wanted = 0, 0
        for job in self.jobs:
            job.left_s = job.work_s
            self._push(job.submit_s, "submit", job)
        while self._events:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] == self.now:
                _, _, kind, what = heapq.heappop(self._events)
                getattr(self, f"_{kind}")(what)
            self._decide()
        return self

    def _push(self, at: float, kind: str, what: Any) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, what))

    def _at(self, seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    def _submit(self, job: Job) -> None:
        most = job.most_nodes or job.nodes
        self._wanted += job.total_gpus
        self.cluster.request(
            LeaseRequest(
                job_id=job.job_id,
                run_id="r",
                ticket=job.preemptions,
                resources=Resources(nodes=NodeRange(min=job.nodes, max=most), gpu_count=job.gpus),
                submitted_at=self._at(job.submit_s),
                priority=job.priority if self.use_priority else 3,
                project=job.project if self.use_projects else "default",
                estimate=timedelta(seconds=job.estimate_s - (job.work_s - job.left_s))
                if job.estimate_s > job.work_s - job.left_s
                else timedelta(seconds=60),
                deadline=self._at(job.deadline_s)
                if job.deadline_s is not None and self.use_deadlines
                else None,
            ),
            self._at(self.now),
        )

    def _end(self, lease: Lease) -> None:
        job = self.by_id[lease.job_id]
        if self.leases.get(job.job_id) is not lease:
            return  # it was taken back before
        self._give_back(job, lease)
        job.ended_s = self.now

    def _stopped(self, lease: Lease) -> None:
        job = self.by_id[lease.job_id]
        if self.leases.get(job.job_id) is not lease:
            return  # it ended while it was asked
        self._give_back(job, lease)
        job.left_s = max(0.0, job.left_s - (self.now - job.running_since)) + RESTART_S
        job.preemptions += 1
        self._submit(job)

    def _give_back(self, job: Job, lease: Lease) -> None:
        del self.leases[job.job_id]
        gpus = len(lease.nodes) * job.gpus
        self._in_use -= gpus
        self.cluster.release(
            ReleaseRequest(job_id=job.job_id, run_id="r", epoch=lease.epoch), self._at(self.now)
        )

    def _decide(self) -> None:
        began = time.perf_counter()
        given, asked_back = self.cluster.decide(self._at(self.now))
        self.decide_s.append(time.perf_counter() - began)
        for lease, _ in asked_back:
            self._push(self.now + CHECKPOINT_S, "stopped", self.leases[lease.job_id])
        for lease in given:
            job = self.by_id[lease.job_id]
            self.leases[job.job_id] = lease
            self._wanted -= job.total_gpus
            self._in_use += len(lease.nodes) * job.gpus
            job.started_s = self.now if job.started_s is None else job.started_s
            job.running_since = self.now
            self._push(self.now + job.left_s, "end", lease)
        self.busy.append((self.now, self._in_use, self._wanted))

    # --- what came of it ---

    def utilisation(self) -> float:
        """Share of GPU time in use while those who wait want more than a whole cluster."""
        total = sum(len(info.gpus) for info in self.infos)
        used = whole = 0.0
        for (at, in_use, wanted), (until, _, _) in itertools.pairwise(self.busy):
            if in_use + wanted >= 1.5 * total:
                used += in_use * (until - at)
                whole += total * (until - at)
        return used / whole if whole else math.nan

    def waits(self) -> list[float]:
        """Seconds from submission to the first start, ascending."""
        return sorted((job.started_s or 0.0) - job.submit_s for job in self.jobs)

    def missed(self) -> set[str]:
        """Jobs that ended after their deadline."""
        return {
            job.job_id
            for job in self.jobs
            if job.deadline_s is not None and (job.ended_s or math.inf) > job.deadline_s
        }

    def turnaround(self) -> dict[str, float]:
        """Mean seconds from submission to end, by project."""
        times: dict[str, list[float]] = {}
        for job in self.jobs:
            times.setdefault(job.project, []).append((job.ended_s or math.inf) - job.submit_s)
        return {project: sum(t) / len(t) for project, t in sorted(times.items())}


def alone(seed: int) -> dict[str, float]:
    """Mean turnaround of each project on an equal part of the cluster that is its own."""
    found: dict[str, float] = {}
    for project in PROJECTS:
        jobs = [job for job in philly(seed) if job.project == project]
        own = nodes(NODES // len(PROJECTS), GPUS_PER_NODE)
        found |= Simulation(jobs=jobs, infos=own, config=SchedulerConfig()).run().turnaround()
    return found


def unavoidable(jobs: Sequence[Job], gpus: int) -> set[str]:
    """Deadlines missed even by fluid, preemptive EDF over the deadline jobs alone."""
    waiting = sorted((j for j in jobs if j.deadline_s is not None), key=lambda j: j.submit_s)
    left = {job.job_id: job.work_s for job in waiting}
    active: list[Job] = []
    missed: set[str] = set()
    now, upcoming = 0.0, 0
    while upcoming < len(waiting) or active:
        while upcoming < len(waiting) and waiting[upcoming].submit_s <= now:
            active.append(waiting[upcoming])
            upcoming += 1
        active.sort(key=lambda job: job.deadline_s or 0.0)
        free, running = gpus, []
        for job in active:
            if job.total_gpus <= free:
                free -= job.total_gpus
                running.append(job)
        following = waiting[upcoming].submit_s if upcoming < len(waiting) else math.inf
        step = min([following - now, *(left[job.job_id] for job in running)])
        now += step
        for job in running:
            left[job.job_id] -= step
            if left[job.job_id] <= 1e-9:
                active.remove(job)
                if now > (job.deadline_s or math.inf):
                    missed.add(job.job_id)
    return missed


SCHEDULERS: dict[str, dict[str, Any]] = {
    "loomos": {"config": SchedulerConfig()},
    "fifo": {
        "config": SchedulerConfig(
            backfill_depth=0, preemption=False, starves_after=timedelta(days=365)
        ),
        "use_priority": False,
        "use_deadlines": False,
        "use_projects": False,
    },
    "priority": {
        "config": SchedulerConfig(
            backfill_depth=0, preemption=False, starves_after=timedelta(days=365)
        ),
        "use_deadlines": False,
        "use_projects": False,
    },
}


async def measure(stack: None) -> dict[str, Any]:
    """The same load under three schedulers."""
    result: dict[str, Any] = {}
    by_itself = alone(seed=1)
    for name, options in SCHEDULERS.items():
        jobs = philly(seed=1)
        began = time.perf_counter()
        run = Simulation(jobs=jobs, infos=nodes(NODES, GPUS_PER_NODE), **options).run()
        waits, missed = run.waits(), run.missed()
        avoidable = missed - unavoidable(philly(seed=1), NODES * GPUS_PER_NODE)
        together = run.turnaround()
        ratios = {p: round(together[p] / by_itself[p], 3) for p in PROJECTS}
        with_deadline = sum(job.deadline_s is not None for job in jobs)
        assert all(job.ended_s is not None for job in jobs)
        found = {
            "utilisation": run.utilisation(),
            "wait_p50_min": waits[len(waits) // 2] / 60,
            "wait_p99_min": waits[int(len(waits) * 0.99)] / 60,
            "wait_max_min": waits[-1] / 60,
            "deadlines_missed": len(missed) / with_deadline,
            "deadlines_missed_avoidably": len(avoidable) / with_deadline,
            # Finish-time fairness (Themis, NSDI 2020): at most 1 if sharing hurts nobody.
            "worst_finish_time_ratio": max(ratios.values()),
            "preemptions": sum(job.preemptions for job in jobs),
            "decide_ms_p50": 1000 * sorted(run.decide_s)[len(run.decide_s) // 2],
            "decide_ms_p99": 1000 * sorted(run.decide_s)[int(len(run.decide_s) * 0.99)],
            "makespan_h": run.now / 3600,
        }
        shown = {key: round(value, 4) for key, value in found.items()}
        print("   ", name, shown, ratios, f"{time.perf_counter() - began:.0f} s", flush=True)
        result |= {f"{name}_{key}": value for key, value in shown.items()}
    return result
