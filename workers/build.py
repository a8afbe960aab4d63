"""Which build a worker is. Named explicitly: the default hashes every loaded module."""

from __future__ import annotations

from importlib.metadata import version

from temporalio.common import WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig


def deployment() -> WorkerDeploymentConfig:
    """Deployment of this process, without worker versioning."""
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name="loomos", build_id=version("loomos")),
        use_worker_versioning=False,
    )
