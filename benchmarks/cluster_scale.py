"""One `Cluster` workflow with a thousand nodes and ten thousand queued jobs on a real server.

    python -m benchmarks.cluster_scale [--nodes 1000] [--jobs 11000] [--minutes 15]

The workflow, its worker and its audits are the real ones; nodes and jobs are played. A node is its
heartbeat. A job is a workflow that no worker runs, so that it can be signalled, audited and ended;
what it would answer to the cluster is answered here, by following the cluster's history. Every
second one job ends and another is submitted; now and then one that holds nodes is ended from
outside, so that only an audit can give its nodes back.

It prints and checks: audits happen while changes do, grants go on, no payload of the cluster's
history and no answer to a query is over 1 MiB, and how long a decision takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    RecordActivityTaskHeartbeatRequest,
)
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.control import ControlActivities
from activities.failures import FailureInterceptor
from loomos.client.cluster import ClusterClient
from loomos.client.temporal import connect
from loomos.errors import Stuck, Unavailable
from loomos.jobs.admission import AdmissionOpen, LeaseDeferred
from loomos.jobs.cluster import (
    ClusterState,
    ClusterStatus,
    Lease,
    LeaseRequest,
    NodeInfo,
    ReleaseRequest,
    SchedulerConfig,
    StatusQuery,
)
from loomos.jobs.names import CLUSTER_TASK_TIMEOUT, CLUSTER_WORKFLOW_ID, CONTROL_QUEUE
from loomos.lifeline import die_with_parent
from loomos.manifest import Resources
from loomos.runtime import run_process
from loomos.settings import Settings, TemporalSettings
from loomos.stack.members import temporal_profile
from workers.build import deployment, tolerate_long_tasks
from workers.control import sandbox
from workflows.cluster import Cluster

MOST_BYTES = 1 << 20
IDLE_QUEUE = "simulated-jobs"
"""A queue that nobody polls."""


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def temporal_server(folder_for: Path | None) -> Iterator[str]:
    """A server with the stack's profile and its database in a folder; gives its address."""
    port, ui = free_port(), free_port()
    binary = str(Path(sys.executable).parent / "temporal")
    with tempfile.TemporaryDirectory(dir=folder_for) as folder:
        command = [
            *(binary, "server", "start-dev", "--ip=127.0.0.1", "--log-level=never"),
            *(f"--port={port}", f"--ui-port={ui}", f"--db-filename={folder}/temporal.db"),
            *temporal_profile(),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def worker_process(address: str) -> Iterator[None]:
    """The control worker, as far as the cluster needs one, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cluster_scale", "--worker", address]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def work(address: str, stop: asyncio.Event) -> None:
    """Run the cluster and its audits until asked to stop."""
    client = await connect(TemporalSettings(address=address), patience_s=60)
    worker = Worker(
        client,
        task_queue=CONTROL_QUEUE,
        workflows=[Cluster],
        activities=[ControlActivities(Settings(), client).audit_leases],
        workflow_runner=sandbox(),
        max_concurrent_workflow_task_polls=10,
        interceptors=[FailureInterceptor()],
        deployment_config=deployment(),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        max_heartbeat_throttle_interval=timedelta(seconds=1),
    )
    tolerate_long_tasks(worker)
    async with worker:
        await stop.wait()


class Nodes:
    """Nodes, as far as the cluster can tell: each holds its activity and heartbeats."""

    def __init__(self, client: Client, count: int) -> None:
        self._client = client
        self.infos = [
            NodeInfo(
                node_id=f"node-{number:04d}",
                incarnation=uuid.uuid4().hex[:8],
                address=f"10.0.{number // 256}.{number % 256}",
                max_ranks=1,
                cpu_count=64,
                memory_bytes=2**39,
                storage_bytes=2**42 - number,
                gpus=["NVIDIA H100 80GB HBM3"],
                labels={"rack": str(number // 40)},
                code_sha256="a" * 64,
                environment_sha256="b" * 64,
            )
            for number in range(count)
        ]
        self.holds = 0

    async def register(self, info: NodeInfo) -> None:
        """Say hello, as a worker does."""
        await self._client.start_workflow(
            "Cluster",
            ClusterState(),
            id=CLUSTER_WORKFLOW_ID,
            task_queue=CONTROL_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            start_signal="register_node",
            start_signal_args=[info],
            task_timeout=CLUSTER_TASK_TIMEOUT,
        )

    async def live(self, info: NodeInfo) -> None:
        """Hold the cluster's activity, and the next run's after that."""
        service, namespace = self._client.workflow_service, self._client.namespace
        queue = TaskQueue(name=info.task_queue)
        while True:
            try:
                task = await service.poll_activity_task_queue(
                    PollActivityTaskQueueRequest(
                        namespace=namespace, task_queue=queue, identity=info.node_id
                    ),
                    timeout=timedelta(seconds=70),
                )
            except RPCError:
                await asyncio.sleep(1)
                continue
            if not task.task_token:  # nobody holds it: it says hello again, as a worker does
                await self.register(info)
                continue
            self.holds += 1
            beat = RecordActivityTaskHeartbeatRequest(
                namespace=namespace,
                task_token=task.task_token,
                details=Payloads(),
                identity=info.node_id,
            )
            interval_s = task.heartbeat_timeout.seconds / 4
            while True:
                await asyncio.sleep(interval_s * random.uniform(0.8, 1.0))
                try:
                    await service.record_activity_task_heartbeat(beat)
                except RPCError:
                    break


class Jobs:
    """Jobs, as far as the cluster can tell."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._cluster = client.get_workflow_handle(CLUSTER_WORKFLOW_ID)
        self._requests: dict[str, LeaseRequest] = {}
        self.leases: dict[str, Lease] = {}
        self.abandoned: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self._number = 0

    async def _tell(self, signal: str, message: LeaseRequest | ReleaseRequest) -> None:
        """Signal the cluster, again if the server is busy: workflows' signals wait likewise."""
        while True:
            try:
                return await self._cluster.signal(signal, message)
            except RPCError as error:
                self.counts[f"signals that waited: {error.status.name}"] += 1
                await asyncio.sleep(0.2)

    async def submit(self) -> None:
        """Start a job and have it ask for nodes."""
        self._number += 1
        number = self._number
        job_id = f"job-{number:06d}-{uuid.uuid4().hex}"
        handle = await self._client.start_workflow(
            "SimulatedJob", id=job_id, task_queue=IDLE_QUEUE, task_timeout=timedelta(minutes=1)
        )
        request = LeaseRequest(
            job_id=job_id,
            run_id=handle.result_run_id or "",
            ticket=1,
            resources=Resources(nodes=4 if number % 50 == 0 else 1),
            submitted_at=datetime.now(UTC),
            priority=1 + number % 5,
            project=f"project-{number % 7}",
            estimate=timedelta(hours=1) if number % 2 else None,
            affinity=[f"{number % 300:064x}", f"{number % 30:064x}"],
        )
        self._requests[job_id] = request
        await self._tell("request_lease", request)

    async def end_one(self) -> None:
        """A job that holds nodes is done."""
        if not self.leases:
            return
        job_id = random.choice(list(self.leases))
        lease = self.leases.pop(job_id)
        release = ReleaseRequest(
            job_id=job_id,
            run_id=lease.run_id,
            epoch=lease.epoch,
            workload=f"work-{lease.epoch % 9}",
            step_s=random.uniform(0.5, 1.0),
        )
        await self._tell("release_lease", release)
        await self._client.get_workflow_handle(job_id).terminate()
        self._requests.pop(job_id, None)

    async def abandon_one(self) -> None:
        """A job that holds nodes is ended from outside, without a word."""
        if self.leases:
            job_id = random.choice(list(self.leases))
            lease = self.leases.pop(job_id)
            self.abandoned[lease.epoch] = job_id
            await self._client.get_workflow_handle(job_id).terminate()

    async def hear(self, signal: str, payload: Any) -> None:
        """What the cluster told a job."""
        if signal == "lease_granted":
            lease = Lease.model_validate_json(payload.data)
            self.leases[lease.job_id] = lease
            self.counts["granted"] += 1
        elif signal == "lease_deferred":
            LeaseDeferred.model_validate_json(payload.data)
            self.counts["deferred"] += 1
        elif signal == "admission_open":
            job_id = AdmissionOpen.model_validate_json(payload.data).job_id
            self.counts["called"] += 1
            if job_id in self._requests:
                await self._tell("request_lease", self._requests[job_id])
        elif signal == "lease_revoked":
            revoked = json.loads(payload.data)["epoch"]
            for lease in list(self.leases.values()):
                if lease.epoch == revoked:
                    await self._tell(
                        "release_lease",
                        ReleaseRequest(job_id=lease.job_id, run_id=lease.run_id, epoch=revoked),
                    )
                    del self.leases[lease.job_id]
                    await self._tell("request_lease", self._requests[lease.job_id])
            self.counts["revoked"] += 1


class Watch:
    """Follows the cluster's histories, run by run, and measures them."""

    def __init__(self, client: Client, jobs: Jobs) -> None:
        self._client, self._jobs = client, jobs
        self.largest: tuple[int, str] = (0, "")
        self.tasks_s: list[tuple[float, float]] = []
        self.grants: list[tuple[float, float]] = []
        self.audits: list[tuple[float, str]] = []
        self.runs = 0

    async def follow(self) -> None:
        """Follow for ever."""
        handle = self._client.get_workflow_handle(CLUSTER_WORKFLOW_ID)
        run_id = (await handle.describe()).run_id
        while True:
            run_id = await self._follow_run(run_id)

    async def _follow_run(self, run_id: str) -> str:
        self.runs += 1
        handle = self._client.get_workflow_handle(CLUSTER_WORKFLOW_ID, run_id=run_id)
        started: dict[int, float] = {}
        audits: set[int] = set()
        asked_at: float | None = None
        async for event in handle.fetch_history_events(wait_new_event=True):
            at = event.event_time.ToDatetime(UTC).timestamp()
            self._measure(event)
            kind = event.event_type
            if kind == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
                started[event.event_id] = at
            elif kind == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                begun = event.workflow_task_completed_event_attributes.started_event_id
                self.tasks_s.append((at, at - started.pop(begun, at)))
            elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                if event.workflow_execution_signaled_event_attributes.signal_name == (
                    "release_lease"
                ):
                    asked_at = asked_at or at
            elif kind == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                scheduled = event.activity_task_scheduled_event_attributes
                if scheduled.activity_type.name == "audit_leases":
                    audits.add(event.event_id)
            elif kind == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                completed = event.activity_task_completed_event_attributes
                if completed.scheduled_event_id in audits:
                    self.audits.append((at, ""))
            elif kind == EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
                failed = event.activity_task_failed_event_attributes
                if failed.scheduled_event_id in audits:
                    self.audits.append((at, failed.failure.message))
            elif kind == EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED:
                told = event.signal_external_workflow_execution_initiated_event_attributes
                if told.signal_name == "lease_granted":
                    if asked_at is not None:
                        self.grants.append((at, at - asked_at))
                    asked_at = None
                await self._jobs.hear(told.signal_name, told.input.payloads[0])
            elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
                next_run = event.workflow_execution_continued_as_new_event_attributes
                return next_run.new_execution_run_id
            elif kind in (
                EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
                EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
            ):
                raise AssertionError(f"the cluster ended: {event}")
        raise AssertionError("the history ended")

    def _measure(self, event: Any) -> None:
        """Payloads are the only large things of an event."""
        size = event.ByteSize()
        if size > self.largest[0]:
            self.largest = size, EventType.Name(event.event_type)


async def ask(client: Client, seconds: float, answers: dict[str, list[tuple[float, int]]]) -> None:
    """What people ask meanwhile: the status page by page, and places of jobs."""
    handle = client.get_workflow_handle(CLUSTER_WORKFLOW_ID)
    cluster = ClusterClient(client)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        cursor, jobs = "", ["nobody"]
        while True:
            began = time.monotonic()
            page: ClusterStatus = await handle.query(
                "status", StatusQuery(cursor=cursor), result_type=ClusterStatus
            )
            size = len(page.model_dump_json())
            answers.setdefault("status", []).append((time.monotonic() - began, size))
            jobs += [each.job_id for each in page.queue]
            if not page.next_cursor:
                break
            cursor = page.next_cursor
        for _ in range(10):
            began = time.monotonic()
            try:
                place = await cluster.place_of(random.choice(jobs))
            except Unavailable:
                answers.setdefault("late", []).append((time.monotonic() - began, 0))
                continue
            size = len(place.model_dump_json()) if place else 0
            answers.setdefault("place_of", []).append((time.monotonic() - began, size))
            await asyncio.sleep(0.5)


async def patiently(cluster: ClusterClient, *, whole: bool = False) -> ClusterStatus:
    """The first page of the status, or all, once the cluster answers."""
    while True:
        try:
            return await (cluster.status() if whole else cluster.page())
        except (Stuck, Unavailable) as error:
            print(f"waits: {error}", flush=True)


def held(status: ClusterStatus) -> int:
    """Nodes that jobs hold."""
    return sum(len(lease.nodes) for lease in status.leases)


def quantile(values: list[float], share: float) -> float:
    """The value that so much of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@asynccontextmanager
async def tasks(*running: asyncio.Task[None]) -> AsyncIterator[None]:
    """Run tasks beside the block; one that fails shows."""
    try:
        yield
        for task in running:
            if task.done():
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def simulate(
    address: str, nodes_count: int, jobs_count: int, minutes: float, queue_limit: int
) -> bool:
    """Set the scene, have a change a second, and say what came of it."""
    client = await connect(TemporalSettings(address=address), patience_s=60)
    while True:  # a server that answers may yet have to make its namespace
        try:
            await client.count_workflows()
            break
        except RPCError:
            await asyncio.sleep(0.2)
    nodes, jobs = Nodes(client, nodes_count), Jobs(client)
    cluster = ClusterClient(client)
    began = time.monotonic()
    living: list[asyncio.Task[None]] = []
    await nodes.register(nodes.infos[0])
    await patiently(cluster)
    await cluster.configure(SchedulerConfig(queue_limit=queue_limit))
    for first in range(0, nodes_count, 20):
        some = nodes.infos[first : first + 20]
        await asyncio.gather(*(nodes.register(info) for info in some))
        living += [asyncio.create_task(nodes.live(info)) for info in some]
    await patiently(ClusterClient(client))
    watch = Watch(client, jobs)
    following = asyncio.create_task(watch.follow())
    print(f"{nodes_count} nodes after {time.monotonic() - began:.0f} s", flush=True)
    async with tasks(following, *living):
        for first in range(0, jobs_count, 20):
            await asyncio.gather(*(jobs.submit() for _ in range(min(20, jobs_count - first))))
            if following.done():
                following.result()
            if first % 200 == 0:  # not faster than the cluster takes them in
                await patiently(cluster)
            if first % 1000 == 0:
                print(f"{first} jobs after {time.monotonic() - began:.0f} s", flush=True)
        deadline = time.monotonic() + 900
        while held(page := await patiently(cluster, whole=True)) < nodes_count * 0.9:
            assert time.monotonic() < deadline, f"{held(page)} nodes held, {following}"
            await asyncio.sleep(2)
        queued = page.waiting_total + page.deferred
        print(
            f"{jobs_count} jobs after {time.monotonic() - began:.0f} s: {page.leases_total} hold "
            f"{held(page)} nodes, {page.waiting_total} queued, {page.deferred} wait for admission",
            flush=True,
        )
        start, granted = time.time(), jobs.counts["granted"]
        answers: dict[str, list[tuple[float, int]]] = {}
        asking = asyncio.create_task(ask(client, minutes * 60, answers))
        second = 0
        while time.time() < start + minutes * 60:
            second += 1
            await asyncio.gather(jobs.end_one(), jobs.submit())
            if second % 30 == 15:
                await jobs.abandon_one()
            if second % 60 == 0:
                print(
                    f"minute {second // 60}: {jobs.counts['granted'] - granted} grants, "
                    f"{len([a for a in watch.audits if a[0] > start])} audits, {dict(jobs.counts)}",
                    flush=True,
                )
            await asyncio.sleep(max(0.0, start + second - time.time()))
        await asking
        after = await patiently(cluster, whole=True)
    return report(watch, jobs, answers, after, start, granted, minutes, queued)


def report(
    watch: Watch,
    jobs: Jobs,
    answers: dict[str, list[tuple[float, int]]],
    after: ClusterStatus,
    start: float,
    granted: int,
    minutes: float,
    queued: int,
) -> bool:
    """Print what was measured; says whether it is as it should be."""
    tasks_s = [took for at, took in watch.tasks_s if at > start]
    waits_s = [took for at, took in watch.grants if at > start]
    audits = [why for at, why in watch.audits if at > start]
    grants = jobs.counts["granted"] - granted
    epochs = {lease.epoch for lease in after.leases}
    lost = [epoch for epoch in jobs.abandoned if epoch in epochs]
    answer = max(size for found in answers.values() for _, size in found)
    ready = sum(node.state == "ready" for node in after.nodes)
    facts: list[tuple[str, str, bool]] = [
        ("queued when it began", str(queued), queued >= 0.9 * 10_000 or minutes < 15),
        ("nodes ready at the end", f"{ready} of {len(after.nodes)}", ready == len(after.nodes)),
        ("grants", f"{grants} in {minutes:g} min", grants > 30 * minutes),
        (
            "audits",
            f"{len(audits)}, of which {sum(map(bool, audits))} failed; newest {after.audit.at}",
            len([why for why in audits if not why]) >= max(1, int(minutes * 0.6)),
        ),
        (
            "leases of vanished jobs",
            f"{len(jobs.abandoned)}, of which {len(lost)} are still held",
            len(lost) <= max(8, len(jobs.abandoned) // 3),
        ),
        (
            "largest event of the history",
            f"{watch.largest[0] / 1024:.0f} KiB ({watch.largest[1]})",
            watch.largest[0] < MOST_BYTES,
        ),
        ("largest answer to a query", f"{answer / 1024:.0f} KiB", answer < MOST_BYTES),
        ("answers later than 10 s", str(len(answers.get("late", []))), True),
        ("runs of the workflow", str(watch.runs), True),
    ]
    for name, values in (
        ("decision (workflow task)", tasks_s),
        ("release to grant", waits_s),
        ("query of the status", [took for took, _ in answers.get("status", [])]),
        ("query of a place", [took for took, _ in answers.get("place_of", [])]),
    ):
        said = (
            f"p50 {1000 * quantile(values, 0.5):.0f} ms, p99 {1000 * quantile(values, 0.99):.0f} "
            f"ms, {len(values)} times"
        )
        facts.append((name, said, bool(values)))
    for name, said, good in facts:
        print(f"{'ok ' if good else 'BAD'} {name}: {said}", flush=True)
    return all(good for *_, good in facts)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=11_000, help="those that hold nodes included")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--queue-limit", type=int, default=1000, help="requests admitted at once")
    parser.add_argument("--folder", type=Path, help="where the database is; default: for temporary")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        die_with_parent(os.getppid())
        run_process(lambda stop: work(chosen.worker, stop))
        return
    with temporal_server(chosen.folder) as address, worker_process(address):
        good = asyncio.run(
            simulate(address, chosen.nodes, chosen.jobs, chosen.minutes, chosen.queue_limit)
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
