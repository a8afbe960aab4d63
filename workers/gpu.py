"""A worker node: registers, heartbeats, and runs ranks and exports on its own queue.

It never imports torch; its rank host does. SIGTERM drains it: what runs checkpoints and moves on.
Start with `python -m workers.gpu`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import uuid
from datetime import timedelta
from pathlib import Path

import psutil
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.failures import FailureInterceptor
from activities.presence import PresenceActivities
from activities.rank_host import RankHost
from activities.train import TrainActivities
from activities.trials import TrialActivities
from loomos.arguments import take_arguments
from loomos.client.temporal import connect
from loomos.jobs.cluster import ClusterState, NodeInfo
from loomos.jobs.names import (
    CLUSTER_TASK_TIMEOUT,
    CLUSTER_WORKFLOW_ID,
    CONTROL_QUEUE,
    POOL_QUEUE,
)
from loomos.lifeline import die_with_parent
from loomos.provenance.environment import code_sha256, describe_environment
from loomos.pulse import ready_when
from loomos.retention.local import sweep_folder
from loomos.runtime import run_process
from loomos.settings import NodeSettings, RetentionSettings, load_settings
from loomos.storage import Store, open_store
from loomos.storage.layout import ENVIRONMENTS_PREFIX, blob_key
from workers.build import deployment

log = logging.getLogger(__name__)

WORK = ("attempts", "checkpoints", "trials", "export-*")
"""What a node writes into its scratch folder for work that is on; the rest is cache."""
TIDY_INTERVAL_S = 600.0
"""An idle node looks for leftovers so often."""

REGISTER_INTERVAL_S = 3.0
"""A node that the cluster does not hold says hello so often."""


def describe_node(settings: NodeSettings, store: Store, scratch: Path) -> NodeInfo:
    """Look at this machine, and put the list of its packages into the store."""
    gpus = _gpus()
    environment = json.dumps(describe_environment(), sort_keys=True).encode()
    digest = hashlib.sha256(environment).hexdigest()
    store.put_if_absent(blob_key(digest), environment)
    store.put_if_absent(f"{ENVIRONMENTS_PREFIX}{digest}", b"{}")
    return NodeInfo(
        node_id=settings.id,
        incarnation=uuid.uuid4().hex[:8],
        address=settings.address,
        max_ranks=settings.max_ranks or len(gpus) or os.cpu_count() or 1,
        cpu_count=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        storage_bytes=shutil.disk_usage(scratch).free,
        gpus=gpus,
        labels=settings.labels,
        node_type=settings.node_type,
        region=settings.region,
        bandwidth_gbps=settings.bandwidth_gbps,
        latency_ms=settings.latency_ms,
        cost_per_hour=settings.cost_per_hour,
        code_sha256=code_sha256(),
        environment_sha256=digest,
    )


def _gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs; none if the driver's tool is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listing = subprocess.run(
        [tool, "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return [line.strip() for line in listing.stdout.splitlines() if line.strip()]


async def keep_registered(client: Client, info: NodeInfo, presence: PresenceActivities) -> None:
    """Say hello to the cluster until it holds this node, and again whenever it lets go."""
    while True:
        if not presence.is_held.is_set():
            try:
                await client.start_workflow(
                    "Cluster",
                    ClusterState(),
                    id=CLUSTER_WORKFLOW_ID,
                    task_queue=CONTROL_QUEUE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    start_signal="register_node",
                    start_signal_args=[info],
                    task_timeout=CLUSTER_TASK_TIMEOUT,
                    static_summary="nodes and leases",
                )
            except RPCError as error:
                log.warning("cannot register: %s", error)
        await asyncio.sleep(REGISTER_INTERVAL_S)


async def main(stop: asyncio.Event) -> None:
    """Serve until asked to stop."""
    settings = load_settings()
    if os.environ.get("LOOMOS_DIE_WITH_PARENT"):
        die_with_parent(os.getppid())
    scratch = settings.node.scratch_dir or Path(tempfile.gettempdir()) / "loomos"
    scratch = scratch / settings.node.id
    scratch.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(clear_leftovers, scratch)
    host = RankHost()
    warming = asyncio.create_task(host.start())
    client = await connect(settings.temporal, patience_s=60)
    store = open_store(settings.storage)
    info = await asyncio.to_thread(describe_node, settings.node, store, scratch)
    presence = PresenceActivities(scratch)
    ready_when(presence.is_held.is_set)
    train = TrainActivities(settings, host, scratch)
    slots = pool_slots(settings.node, info)
    trials = TrialActivities(settings, train, info, slots)
    worker = Worker(
        client,
        task_queue=info.task_queue,
        activities=[
            train.train,
            train.publish_model,
            train.evaluate_shard,
            presence.hold_node,
        ],
        interceptors=[FailureInterceptor()],
        deployment_config=deployment(),
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=0),
        identity=f"{info.node_id}@{info.incarnation}",
    )
    log.info("node %s, incarnation %s, %s ranks", info.node_id, info.incarnation, info.max_ranks)
    async with contextlib.AsyncExitStack() as running:
        await running.enter_async_context(worker)
        if slots:
            await running.enter_async_context(pool_worker(client, info, trials, train, slots))
        registering = asyncio.create_task(keep_registered(client, info, presence))
        tidying = asyncio.create_task(keep_tidy(scratch, settings.retention, train))
        await stop.wait()
        registering.cancel()
        tidying.cancel()
        presence.leave()
    warming.cancel()
    await trials.close()
    await host.close()


def clear_leftovers(scratch: Path) -> None:
    """Remove what an earlier process of this node left at work when it died."""
    for pattern in WORK:
        for entry in scratch.glob(pattern):
            shutil.rmtree(entry, ignore_errors=True)


async def keep_tidy(scratch: Path, rules: RetentionSettings, train: TrainActivities) -> None:
    """Remove leftovers while nothing is at work here, and cached inputs that are not used."""
    while True:
        await asyncio.sleep(TIDY_INTERVAL_S)
        if train.is_idle:
            await asyncio.to_thread(tidy, scratch, rules)


def tidy(scratch: Path, rules: RetentionSettings) -> None:
    """Remove old leftovers and cached inputs from a scratch folder."""
    sweep_folder(scratch / "attempts", rules.scratch.total_seconds())
    sweep_folder(scratch / "checkpoints", rules.scratch.total_seconds())
    others = [entry for entry in scratch.iterdir() if not entry.name.startswith("export-")]
    sweep_folder(scratch, rules.scratch.total_seconds(), keep=others)
    sweep_folder(scratch / "inputs", rules.caches.total_seconds())
    for model in (scratch / "models").glob("*"):
        sweep_folder(model, rules.caches.total_seconds())


def pool_slots(settings: NodeSettings, info: NodeInfo) -> int:
    """How many trials this node runs at a time."""
    if settings.pool_slots is not None:
        return settings.pool_slots
    return 0 if info.gpus else max(1, info.cpu_count // 2)


def pool_worker(
    client: Client, info: NodeInfo, trials: TrialActivities, train: TrainActivities, slots: int
) -> Worker:
    """The worker of the queue that all nodes share."""
    return Worker(
        client,
        task_queue=POOL_QUEUE,
        activities=[trials.run_trial, train.blend_policies],
        interceptors=[FailureInterceptor()],
        deployment_config=deployment(),
        max_concurrent_activities=slots,
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        default_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=0),
        identity=f"{info.node_id}@{info.incarnation}",
    )


if __name__ == "__main__":
    take_arguments("workers.gpu", __doc__, ("node", "temporal", "storage"))
    run_process(main)
