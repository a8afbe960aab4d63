"""What could be asked for differently; every piece of advice was tried on the cluster's rules."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from loomos.jobs.cluster import Advice, LeaseRequest
from loomos.manifest import NodeRange
from loomos.nexus.allocation import Allocation

MOST_TRIED = 10_000
"""Rounds tried times nodes and requests: the workflow that tries decides nothing meanwhile."""


def advise(cluster: Allocation, now: datetime) -> list[Advice]:
    """Changes of waiting requests that would start them sooner, and estimates that are missing.

    Args:
        cluster: as it is; it is not changed.
        now: the time.

    Returns:
        By job. With very many nodes and requests only the first of the queue are tried.
    """
    found: list[Advice] = []
    tries = Tries(MOST_TRIED // (1 + len(cluster.nodes) + len(cluster.queue)))
    for waiting in cluster.queue:
        found += _for_waiting(cluster, waiting.request, now, tries)
    for lease in cluster.leases.values():
        request = lease.request
        if request is None:
            continue
        if request.estimate is None and cluster.queue:
            found.append(
                Advice(
                    job_id=lease.job_id,
                    is_running=True,
                    change="set runtime.estimated_duration",
                    effect="short jobs could then fill the gaps before those that wait for it",
                )
            )
        elif lease.ends_by is not None and lease.ends_by < now:
            found.append(
                Advice(
                    job_id=lease.job_id,
                    is_running=True,
                    change="raise runtime.estimated_duration",
                    effect=f"it should have ended at {lease.ends_by:%Y-%m-%dT%H:%M:%SZ}",
                )
            )
    return found


class Tries:
    """Rounds that may yet be tried."""

    def __init__(self, left: int) -> None:
        self._left = left

    def take(self) -> bool:
        """Whether one more may be tried."""
        self._left -= 1
        return self._left >= 0


def _for_waiting(
    cluster: Allocation, request: LeaseRequest, now: datetime, tries: Tries
) -> Iterator[Advice]:
    if not tries.take() or _starts_now(cluster, request, now):
        return
    for change, tried in _variations(request):
        if not tries.take():
            return
        if _starts_now(cluster, tried, now):
            yield Advice(
                job_id=request.job_id,
                is_running=False,
                change=change,
                effect="it would start now",
            )
            return


def _starts_now(cluster: Allocation, request: LeaseRequest, now: datetime) -> bool:
    """Whether a request would get nodes at once, taking nothing from anybody."""
    trial = Allocation.from_state(cluster.to_state())
    trial.configure(cluster.config.model_copy(update={"preemption": False}))
    trial.request(request, now)
    given, _ = trial.decide(now)
    return any(lease.job_id == request.job_id for lease in given)


def _variations(request: LeaseRequest) -> Iterator[tuple[str, LeaseRequest]]:
    """Smaller changes first."""
    resources = request.resources

    def with_resources(**fields: object) -> LeaseRequest:
        changed = resources.model_copy(update=fields)
        return request.model_copy(update={"resources": changed})

    fewest = resources.node_range.min
    for count in range(fewest - 1, 0, -1):
        sizes = NodeRange(min=count, max=resources.node_range.max)
        yield (
            f"set resources.nodes to {{min: {count}, max: {sizes.max}}}",
            with_resources(nodes=sizes),
        )
    for field in ("region", "node_type", "gpu_type", "min_bandwidth_gbps", "max_latency_ms"):
        if getattr(resources, field) is not None:
            yield f"leave out resources.{field}", with_resources(**{field: None})
    for count in range((resources.gpu_count or 1) - 1, 0, -1):
        yield f"set resources.gpu_count to {count}", with_resources(gpu_count=count)
    if resources.memory_bytes:
        half = resources.memory_bytes // 2
        yield (
            f"halve resources.memory to {half // 2**20}Mi",
            with_resources(memory=half, memory_gb=None),
        )
