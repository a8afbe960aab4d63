"""LoomOS: AI training as durable pipelines.

`LoomOSClient`, `JobSpec`, `ResourceRequirements` and `JobManifest` are the SDK; they speak HTTP
and load neither torch nor temporalio. They are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.job_spec import JobSpec, ResourceRequirements
    from loomos.manifest import JobManifest, ManifestValidator

__all__ = [
    "JobManifest",
    "JobSpec",
    "LoomOSClient",
    "ManifestValidator",
    "ResourceRequirements",
]

_HOME = {
    "JobManifest": "loomos.manifest",
    "JobSpec": "loomos.client.job_spec",
    "LoomOSClient": "loomos.client.http",
    "ManifestValidator": "loomos.manifest",
    "ResourceRequirements": "loomos.client.job_spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'loomos' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
