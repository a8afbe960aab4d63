"""Names that workflows, workers and clients must agree on: queues, ids, search attributes."""

from __future__ import annotations

import hashlib

CONTROL_QUEUE = "loomos-control"
"""Workflow tasks, and activities that any control worker may run."""

POOL_QUEUE = "loomos-pool"
"""Small single-node work that needs no lease: trials, averages of policies. Every node with pool
slots serves it."""

CLUSTER_WORKFLOW_ID = "loomos-cluster"
"""The one `Cluster` workflow of a namespace."""

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


def experiment_workflow_id(name: str, key: str) -> str:
    """The `ExperimentSweep` of an experiment; `key` is its idempotency key."""
    return f"{name}-{hashlib.sha256(f'experiment/{key}'.encode()).hexdigest()[:8]}"


def campaign_workflow_id(name: str, key: str) -> str:
    """The `RLCampaign` of a campaign; `key` is its idempotency key."""
    return f"{name}-{hashlib.sha256(f'campaign/{key}'.encode()).hexdigest()[:8]}"


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
