"""Which build a worker is. Named explicitly: the default hashes every loaded module."""

from __future__ import annotations

from importlib.metadata import version

from temporalio.common import WorkerDeploymentVersion
from temporalio.worker import Worker, WorkerDeploymentConfig

from loomos.jobs.names import CLUSTER_TASK_TIMEOUT


def deployment() -> WorkerDeploymentConfig:
    """Deployment of this process, without worker versioning."""
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name="loomos", build_id=version("loomos")),
        use_worker_versioning=False,
    )


LONGEST_TASK_S = int(CLUSTER_TASK_TIMEOUT.total_seconds())
"""Seconds that a workflow may think without a pause: as long as the server lets any task take."""


def tolerate_long_tasks(worker: Worker) -> None:
    """Let workflows think for as long as the server lets them.

    By default a worker takes a workflow for deadlocked that has not yielded for 2 s, and its task
    fails. After an outage a task may hold a thousand signals, and on a loaded machine that is no
    deadlock: the task would be tried again with as many signals, and fail for ever.
    """
    inner = worker._workflow_worker
    assert inner is not None and inner._deadlock_timeout_seconds is not None
    inner._deadlock_timeout_seconds = LONGEST_TASK_S
