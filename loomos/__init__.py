"""LoomOS: AI training as durable pipelines.

`LoomOSClient`, `JobSpec`, `ResourceRequirements` and `JobManifest` are the SDK; they speak HTTP
and load neither torch nor temporalio. They are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomos._lazy import lazy

__version__ = "0.1.0"
"""Version of LoomOS; the distribution takes its own from here."""

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.job_spec import JobSpec, ResourceRequirements
    from loomos.client.synchronous import SyncLoomOSClient
    from loomos.manifest import JobManifest, ManifestValidator

__all__ = [
    "JobManifest",
    "JobSpec",
    "LoomOSClient",
    "ManifestValidator",
    "ResourceRequirements",
    "SyncLoomOSClient",
    "__version__",
]

__getattr__ = lazy(
    __name__,
    {
        "JobManifest": "loomos.manifest",
        "JobSpec": "loomos.client.job_spec",
        "LoomOSClient": "loomos.client.http",
        "ManifestValidator": "loomos.manifest",
        "ResourceRequirements": "loomos.client.job_spec",
        "SyncLoomOSClient": "loomos.client.synchronous",
    },
)
