"""Names that workflows, workers and clients must agree on: queues, ids, search attributes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from datetime import timedelta

CONTROL_QUEUE = "loomos-control"
"""Workflow tasks, and activities that any control worker may run."""

POOL_QUEUE = "loomos-pool"
"""Small single-node work that needs no lease: trials, averages of policies. Every node with pool
slots serves it."""

CLUSTER_WORKFLOW_ID = "loomos-cluster"
"""The one `Cluster` workflow of a namespace."""

CLUSTER_TASK_TIMEOUT = timedelta(seconds=30)
"""What a task of it may take: long enough to replay thousands of messages that came in a burst, or
a worker would try for ever."""

JOB_KIND = "TrainingJob"
ENDPOINT_KIND = "Endpoint"
ROLLOUT_KIND = "CanaryRollout"
VERIFICATION_KIND = "VerificationSuite"
CONTINUAL_KIND = "ContinualLearning"
EXPERIMENT_KIND = "Experiment"
CAMPAIGN_KIND = "RLCampaign"

SUMMARY_MEMO = "summary"
"""What came of an experiment or a campaign, in short, for lists."""


def endpoint_workflow_id(name: str) -> str:
    """The one `Endpoint` workflow of a name."""
    return f"endpoint/{name}"


def rollout_workflow_id(endpoint: str) -> str:
    """The one `CanaryRollout` that an endpoint may have at a time."""
    return f"canary/{endpoint}"


def leadership_workflow_id(group: str) -> str:
    """The one `Leadership` workflow of a group."""
    return f"leadership/{group}"


SEARCH_ATTRIBUTES = {
    "LoomKind": "Keyword",
    "LoomName": "Keyword",
    "LoomOwner": "Keyword",
    "LoomProject": "Keyword",
    "LoomState": "Keyword",
    "LoomModel": "Keyword",
    "LoomPriority": "Int",
    "LoomLabels": "KeywordList",
}
"""What jobs can be filtered by, in Temporal's UI and in ours. Labels are `key=value`."""


def verification_workflow_id(name: str) -> str:
    """The `VerificationSuite` of a job, or one started by hand."""
    return f"verify/{name}"


_IDENTIFIER = re.compile(r"[a-z2-7]{26}")


def new_identifier() -> str:
    """128 random bits, as 26 letters and digits that ids may have."""
    return _identifier(secrets.token_bytes(16))


def short_digest(*parts: str) -> str:
    """128 bits that stand for these texts, in this order and so divided, and for no others."""
    # As JSON: joined by a sign, `a/b`, `c` and `a`, `b/c` would be the same.
    return _identifier(hashlib.sha256(json.dumps(parts).encode()).digest()[:16])


def is_identifier(text: str) -> bool:
    """Whether a text is what `new_identifier` makes."""
    return _IDENTIFIER.fullmatch(text) is not None


def _identifier(bits: bytes) -> str:
    return base64.b32encode(bits).decode().rstrip("=").lower()


def run_id(name: str, identifier: str) -> str:
    """Id of a run that was started with an identifier as its idempotency key."""
    return f"{name}-{identifier}"


def schedule_id(name: str) -> str:
    """The schedule of a continual learning."""
    return f"continual/{name}"


GARBAGE_SCHEDULE_ID = "garbage-collection"
"""The one schedule that frees what nobody needs."""


def garbage_workflow_id(name: str) -> str:
    """A `GarbageCollection`; those of the schedule share the name `scheduled`."""
    return f"garbage/{name}"


def label_list(labels: dict[str, str]) -> list[str]:
    """Labels as the search attribute holds them."""
    return [f"{key}={value}" for key, value in sorted(labels.items())]
