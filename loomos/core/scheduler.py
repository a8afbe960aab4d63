"""The scheduler for programs: jobs by ids of one's own, dependencies, placement policies.

A thin face over the gateway; who gets which nodes is decided by the `Cluster` workflow.

Example:
    >>> scheduler = Scheduler()
    >>> handle = await scheduler.submit_job(JobSpec(job_id="training_job_001"))  # doctest: +SKIP
    >>> status = await scheduler.get_job_status(handle.job_id)  # doctest: +SKIP
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from loomos.client.http import LoomOSClient, opened
from loomos.client.job_spec import JobSpec as ClientJobSpec
from loomos.client.models import ClusterResources, JobDetail, JobSummary
from loomos.errors import Conflict, InvalidInput, NotFound
from loomos.manifest import JobManifest
from loomos.nexus.policies import SchedulingPolicy, name_of

__all__ = [
    "JobHandle",
    "JobSpec",
    "ResourceRequirements",
    "Scheduler",
    "SchedulingPolicy",
]

ID_LABEL, TYPE_LABEL = "scheduler/job-id", "scheduler/job-type"

log = logging.getLogger(__name__)

_CONSTRAINTS = ("node_type", "region", "gpu_type", "min_bandwidth_gbps", "max_latency_ms")


@dataclass(frozen=True, kw_only=True)
class ResourceRequirements:
    """What each node of a job must have."""

    cpu_cores: int | None = None
    """Cores."""
    memory_gb: int | None = None
    """Memory in GiB."""
    gpu_count: int | None = None
    """GPUs. Default: whatever the node has."""
    storage_gb: int | None = None
    """Free disk in GiB."""
    nodes: int = 1
    """Nodes of the gang."""


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job under an id of the caller's choice."""

    job_id: str
    """The caller's id: the same id and content give the same job, once."""
    job_type: str = "model_training"
    """Free text, kept as a label."""
    resources: ResourceRequirements = field(default_factory=ResourceRequirements)
    """With what."""
    resource_constraints: Mapping[str, Any] = field(default_factory=dict)
    """Which nodes: node_type, region, gpu_type, min_bandwidth_gbps, max_latency_ms, or labels."""
    priority: int = 3
    """1 is served first, 5 last, as everywhere in LoomOS."""
    max_runtime_hours: float | None = None
    """Wall time with nodes after which the job is stopped."""
    retry_count: int | None = None
    """Failures in a row after which it fails."""
    dependencies: list[str] = field(default_factory=list)
    """Jobs that must be done first, by the caller's ids or LoomOS's."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Model, data and optimisation, as `loomos.client.JobSpec` takes them. Without a model the job
    is a probe of the way through the system: it takes no nodes, and its handle says so."""

    def to_manifest(self, depends_on: list[str]) -> JobManifest:
        """The manifest that says the same.

        Args:
            depends_on: LoomOS's ids of the dependencies.
        """
        plain = ClientJobSpec(
            name=re.sub(r"[^a-z0-9]+", "-", self.job_id.lower()).strip("-") or "job",
            algorithm="sft" if self.config else "noop",
            config=dict(self.config),
            labels={ID_LABEL: self.job_id, TYPE_LABEL: self.job_type},
            priority=self.priority,
        )
        document = plain.to_manifest().to_dict()
        spec = document["spec"]
        asked = self.resources
        amounts = {
            "nodes": asked.nodes,
            "cpu": asked.cpu_cores,
            "memory_gb": asked.memory_gb,
            "gpu_count": asked.gpu_count,
            "storage_gb": asked.storage_gb,
        }
        spec["resources"] = {key: value for key, value in amounts.items() if value is not None}
        for key, value in self.resource_constraints.items():
            if key in _CONSTRAINTS:
                spec["resources"][key] = value
            else:
                spec["resources"].setdefault("node_labels", {})[key] = str(value)
        runtime: dict[str, Any] = {}
        if self.max_runtime_hours is not None:
            runtime["max_duration"] = f"{self.max_runtime_hours}h"
        if self.retry_count is not None:
            runtime["retries"] = {"max_attempts": self.retry_count + 1}
        return JobManifest.from_dict(
            {
                **document,
                "spec": {**spec, "runtime": runtime, "depends_on": depends_on},
            }
        )


@dataclass(frozen=True, kw_only=True)
class JobHandle:
    """A submitted job."""

    job_id: str
    """LoomOS's id, by which the CLI knows it too."""
    created: bool
    """Whether it is new; false if the same was submitted before."""
    is_probe: bool = False
    """Whether it names no model: then it takes no nodes, trains nothing, and soon is complete."""


class Scheduler:
    """Submits jobs and looks after them.

    Args:
        client: an open client. Default: one per call, from the settings.
    """

    def __init__(self, client: LoomOSClient | None = None) -> None:
        self._client = client
        self._policy: str | None = None

    async def submit_job(self, job_spec: JobSpec) -> JobHandle:
        """Submit a job; the same one again changes nothing.

        Raises:
            InvalidManifest: something of it is wrong.
            NotFound: it depends on a job that is not known.
            Conflict: another job was submitted under its id, or its deadline cannot be met.
        """
        async with self._open() as client:
            depends_on = [await _find(client, job_id) for job_id in job_spec.dependencies]
            made = await client.submit_job_from_manifest(
                job_spec.to_manifest(depends_on), idempotency_key=f"scheduler/{job_spec.job_id}"
            )
        is_probe = not job_spec.config
        if is_probe:
            log.warning(
                "%s names no model in its config: it is a probe, which takes no nodes and trains "
                "nothing",
                job_spec.job_id,
            )
        return JobHandle(job_id=made.job_id, created=made.created, is_probe=is_probe)

    async def get_job_status(self, job_id: str) -> JobDetail:
        """A job by either id: its `state`, its `progress` in percent, and more."""
        async with self._open() as client:
            return await client.get_job_status(await _find(client, job_id))

    async def cancel_job(self, job_id: str) -> bool:
        """Cancel a job; false if it had ended."""
        async with self._open() as client:
            try:
                await client.cancel_job(await _find(client, job_id))
            except Conflict:
                return False
        return True

    async def list_jobs(self, filters: Mapping[str, Any] | None = None) -> list[JobSummary]:
        """Jobs, newest first.

        Args:
            filters: any of `states`, `owner`, `project`, `labels`, `limit`.
        """
        async with self._open() as client:
            return list((await client.list_jobs(**(filters or {}))).jobs)

    async def get_cluster_capacity(self) -> ClusterResources:
        """What the ready nodes have, and what of it is in use."""
        async with self._open() as client:
            return await client.get_available_resources()

    def set_policy(self, policy: SchedulingPolicy | str) -> None:
        """Place jobs by another policy, from the next call on; see `optimize_scheduling`.

        Raises:
            InvalidInput: the policy is the program's own, so that the cluster has it not.
        """
        self._policy = policy if isinstance(policy, str) else name_of(policy)

    async def optimize_scheduling(self, policy: SchedulingPolicy | str) -> None:
        """Place jobs by another policy from now on.

        Args:
            policy: a built-in one, one that an installed package offers by the entry point group
                `loomos.scheduling_policies`, or the name of one that the cluster has.

        Raises:
            InvalidInput: the policy is the program's own, or the cluster knows none of that name.
        """
        self.set_policy(policy)
        async with self._open():
            pass

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[LoomOSClient]:
        async with opened(self._client) as client:
            await self._apply_policy(client)
            yield client

    async def _apply_policy(self, client: LoomOSClient) -> None:
        if self._policy is None:
            return
        config = await client.scheduler.config()
        wanted = config.model_copy(update={"policy": self._policy})
        try:
            if wanted != config:
                await client.scheduler.configure(wanted)
        except InvalidInput:
            self._policy = None  # said once; what comes next need not fail for it
            raise
        self._policy = None


async def _find(client: LoomOSClient, job_id: str) -> str:
    """LoomOS's id of a job given by that or by the caller's."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", job_id) is None:
        raise InvalidInput(f"job_id: {job_id!r} has characters that ids do not have")
    found = (await client.list_jobs(labels={ID_LABEL: job_id}, limit=1)).jobs
    if found:
        return found[0].job_id
    try:
        return (await client.get_job_status(job_id)).job_id
    except (NotFound, InvalidInput):  # LoomOS's own ids have fewer characters than callers' may
        raise NotFound(f"no job {job_id!r}, neither by that id nor under that label") from None
