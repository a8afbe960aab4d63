"""What a worker hands to the processes that its rank host forks. No torch here."""

from __future__ import annotations

import json
from pathlib import Path

from loomos.jobs.campaigns import BlendRequest
from loomos.jobs.message import Message
from loomos.jobs.training import PublishRequest, TrainAssignment
from loomos.jobs.verification import ShardRequest
from loomos.settings import StorageSettings


class HostedRequest(Message):
    """What every such process gets. It travels as a file that only its owner can read."""

    storage: StorageSettings
    """How to reach the store."""
    scratch: Path
    """Folder for this machine's temporary files."""

    def write(self, path: Path) -> None:
        """Write it as JSON, the store's secret included."""
        content = self.model_dump(mode="json")
        secret = self.storage.secret_key
        content["storage"]["secret_key"] = secret.get_secret_value() if secret else None
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))


class AnsweredRequest(HostedRequest):
    """What a process gets that answers with a file."""

    result: Path
    """File for what it found, or for its error; see `loomos.training.hosted`."""


class RankRequest(HostedRequest):
    """For the ranks of one node in one attempt."""

    assignment: TrainAssignment
    """The work."""
    pipe: Path | None = None
    """Named pipe for reports."""


class EvaluateRequest(AnsweredRequest):
    """For the process that answers a shard of a verification."""

    work: ShardRequest
    """The shard."""
    public_key: str
    """PEM of the key that must have signed the version."""


class AverageRequest(AnsweredRequest):
    """For the process that averages and appraises policies."""

    work: BlendRequest
    """What to average."""


class ExportRequest(AnsweredRequest):
    """For the process that makes a model version."""

    publish: PublishRequest
    """What to publish."""
