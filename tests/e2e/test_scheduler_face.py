"""The scheduler and the coordinator as programs use them, on the real stack."""

from __future__ import annotations

from typing import Any

import pytest

from loomos.client.http import LoomOSClient
from loomos.core.scheduler import JobSpec, ResourceRequirements, Scheduler, SchedulingPolicy
from loomos.errors import Conflict, InvalidInput, NotFound
from loomos.jobs.cluster import LeaseRequest
from loomos.jobs.states import JobState
from loomos.nexus import policies
from loomos.nexus.master.coordinator import ClusterConfig, MasterCoordinator
from loomos.nexus.policies import WorkerStats
from tests.stack import CORPUS, Stack


async def test_jobs_go_by_the_callers_ids(stack: Stack, client: LoomOSClient) -> None:
    scheduler = Scheduler(client)
    spec = JobSpec(
        job_id="face_job_001",
        job_type="probe",
        resources=ResourceRequirements(cpu_cores=1, memory_gb=1, gpu_count=0, storage_gb=1),
        priority=5,
        max_runtime_hours=24,
        retry_count=3,
    )
    handle = await scheduler.submit_job(spec)
    assert handle.created and handle.is_probe
    again = await scheduler.submit_job(spec)
    assert (again.job_id, again.created) == (handle.job_id, False)
    with pytest.raises(Conflict, match="was used for another document"):
        await scheduler.submit_job(JobSpec(job_id="face_job_001", priority=1))
    await stack.until(client, handle.job_id, JobState.COMPLETED)
    status = await stack.eventually(
        lambda: scheduler.get_job_status("face_job_001"), lambda job: job.progress == 100
    )
    assert status.job_id == handle.job_id
    assert "was a probe: took no nodes" in status.message
    assert await scheduler.cancel_job(handle.job_id) is False
    after = await scheduler.submit_job(
        JobSpec(
            job_id="face_job_002",
            dependencies=["face_job_001"],
            resource_constraints={"node_type": "gpu_node", "max_latency_ms": 50},
        )
    )
    await stack.until(client, after.job_id, JobState.COMPLETED)
    listed = await scheduler.list_jobs({"labels": {"scheduler/job-type": "probe"}})
    assert [job.job_id for job in listed] == [handle.job_id]
    with pytest.raises(NotFound, match="no job 'face_job_999'"):
        await scheduler.submit_job(JobSpec(job_id="x", dependencies=["face_job_999"]))
    assert (await scheduler.get_cluster_capacity()).nodes_ready == 2


async def test_a_policy_is_chosen_by_its_class(client: LoomOSClient) -> None:
    class PriorityFirstPolicy(SchedulingPolicy):
        def score_placement(self, job: LeaseRequest, worker_stats: WorkerStats) -> float:
            return job.priority * worker_stats["available_resources"]

    class HomeMade(PriorityFirstPolicy):
        pass

    before = await client.scheduler.config()
    scheduler = Scheduler(client)
    scheduler.set_policy(policies.PriorityFirstPolicy())
    await scheduler.get_cluster_capacity()
    assert (await client.scheduler.config()).policy == "priority-first"
    await scheduler.optimize_scheduling("spread")
    assert (await client.scheduler.config()).policy == "spread"
    with pytest.raises(InvalidInput, match="no 'home-made'; known: bin-pack"):
        await scheduler.optimize_scheduling("home-made")
    own = r"is this program's own; .* another of the name 'priority-first'.*loomos.scheduling_pol"
    with pytest.raises(InvalidInput, match=own):
        scheduler.set_policy(PriorityFirstPolicy())
    with pytest.raises(InvalidInput, match=r"home-made = '.*:HomeMade', install that"):
        await scheduler.optimize_scheduling(HomeMade())
    assert (await client.scheduler.config()).policy == "spread"
    await client.scheduler.configure(before)


async def test_a_coordinator_starts_looks_and_trains(stack: Stack, client: LoomOSClient) -> None:
    before = await client.scheduler.config()
    config = ClusterConfig(
        cluster_name="training_cluster_01",
        max_workers=100,
        heartbeat_interval=30,
        failure_threshold=3,
        load_balancing_strategy="performance_weighted",
    )
    master = MasterCoordinator(config, client)
    with pytest.raises(Conflict, match="not started"):
        await MasterCoordinator(config).get_cluster_status()
    await master.start()
    assert (await client.scheduler.config()) == before, "starting changes nobody's placement"
    assert await master.apply_load_balancing() == before.policy
    assert (await client.scheduler.config()).policy == "performance-weighted"
    status = await master.get_cluster_status()
    assert (status.active_workers, status.total_capacity, status.current_load) == (2, 2, 0.0)
    small: dict[str, Any] = {
        "model_type": "transformer",
        "training_data": str(CORPUS),
        "batch_size": 4,
        "learning_rate": 1e-4,
        "distributed_strategy": "data_parallel",
        "model_config": {"hidden_size": 64, "num_hidden_layers": 1},
        "max_steps": 3,
        "sequence_length": 64,
    }
    job_id = await master.submit_training_job(small)
    done = await stack.until(client, job_id, JobState.COMPLETED)
    assert done.labels == {"cluster": "training_cluster_01"}
    assert done.published and done.published.size_bytes < 1_000_000
    with pytest.raises(InvalidInput, match="distributed_strategy: no 'magic'"):
        await master.submit_training_job(small | {"distributed_strategy": "magic"})
    with pytest.raises(Conflict, match="2 nodes are ready, more than 1"):
        await MasterCoordinator(ClusterConfig(cluster_name="x", max_workers=1), client).start()
    await master.stop()
    await client.scheduler.configure(before)
