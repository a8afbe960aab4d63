"""The control worker: runs every workflow, and the activities that need no torch.

Run any number of them. Start with `python -m workers.control`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta

from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.continual import ContinualActivities
from activities.control import ControlActivities
from activities.endpoints import EndpointActivities
from activities.experiments import ExperimentActivities
from activities.failures import FailureInterceptor
from activities.ledger import LedgerActivities
from activities.retention import RetentionActivities
from activities.rollouts import RolloutActivities
from activities.verification import VerificationActivities
from loomos.arguments import take_arguments
from loomos.client.retention import keep_schedule
from loomos.client.temporal import connect
from loomos.jobs.names import CONTROL_QUEUE
from loomos.loomdb import LoomDB
from loomos.nexus.policies import load_policies
from loomos.pulse import ready_when
from loomos.runtime import run_process
from loomos.settings import load_settings
from workers.build import deployment, tolerate_long_tasks
from workers.early_queries import EarlyQueryGuard
from workflows.campaign import RLCampaign
from workflows.cluster import Cluster
from workflows.continual import ContinualLearning
from workflows.endpoints import Endpoint, ModelChanges
from workflows.experiment import ExperimentSweep
from workflows.leadership import Leadership
from workflows.retention import GarbageCollection
from workflows.rollouts import CanaryRollout
from workflows.training import TrainingRun
from workflows.verification import VerificationSuite

log = logging.getLogger(__name__)

WORKFLOWS = [
    TrainingRun,
    Cluster,
    Endpoint,
    ModelChanges,
    CanaryRollout,
    VerificationSuite,
    ContinualLearning,
    Leadership,
    ExperimentSweep,
    RLCampaign,
    GarbageCollection,
]


def sandbox() -> SandboxedWorkflowRunner:
    """Workflow code is checked for determinism; the pure library is passed through."""
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(
            "loomos", "pydantic", "pydantic_core", "annotated_types", "yaml", "typing_extensions"
        )
    )


async def keep_collecting(client: Client, every: timedelta, stop: asyncio.Event) -> None:
    """Have the schedule that collects garbage, however long Temporal takes."""
    while not stop.is_set():
        try:
            await keep_schedule(client, every)
            return
        except RPCError as error:
            log.warning("cannot make the schedule that collects garbage: %s", error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await stop.wait()


async def main(stop: asyncio.Event) -> None:
    """Serve until asked to stop; then finish what runs."""
    settings = load_settings()
    load_policies()
    client = await connect(settings.temporal, patience_s=60)
    control = ControlActivities(settings, client)
    db = LoomDB(settings.loomdb.url, may_lead=False)
    ledger = LedgerActivities(settings, db)
    endpoints = EndpointActivities(settings, db)
    rollouts = RolloutActivities(settings, client)
    verification = VerificationActivities(settings)
    continual = ContinualActivities(settings, db)
    experiments = ExperimentActivities(client)
    retention = RetentionActivities(settings, client)
    worker = Worker(
        client,
        task_queue=CONTROL_QUEUE,
        workflows=WORKFLOWS,
        activities=[
            control.resolve_inputs,
            control.open_attempt,
            control.noop,
            control.audit_leases,
            control.look_at_jobs,
            ledger.record_facts,
            ledger.record_checkpoints,
            ledger.attest_model,
            ledger.sign_version,
            endpoints.open_endpoint,
            endpoints.watch_endpoint,
            endpoints.place_replicas,
            endpoints.close_endpoint,
            endpoints.change_registry,
            rollouts.open_canary,
            rollouts.set_traffic,
            rollouts.watch_stage,
            rollouts.close_canary,
            verification.plan_verification,
            verification.judge_verification,
            continual.collect_samples,
            continual.conclude_update,
            experiments.suggest,
            experiments.read_earlier,
            retention.sweep_store,
        ],
        workflow_runner=EarlyQueryGuard(sandbox()),
        interceptors=[FailureInterceptor()],
        deployment_config=deployment(),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=5),
        max_concurrent_workflow_task_polls=10,
    )
    tolerate_long_tasks(worker)
    async with db, worker:
        ready_when(lambda: worker.is_running)
        await keep_collecting(client, settings.retention.every, stop)
        await stop.wait()


if __name__ == "__main__":
    take_arguments("workers.control", __doc__, ("temporal", "storage", "loomdb"))
    run_process(main)
