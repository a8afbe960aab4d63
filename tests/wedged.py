"""Workflows that are stuck: started by hand with input that nobody can read, one of each kind."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from temporalio.client import Client

from loomos.client.temporal import connect
from loomos.jobs.names import CONTROL_QUEUE, schedule_id
from loomos.settings import TemporalSettings
from tests.stack import Stack


class Kind(NamedTuple):
    """A kind of thing of the API."""

    workflow: str
    """Type of the workflow that carries it."""
    path: str
    """Where the API has all of them."""
    prefix: str
    """Of workflow ids, before the name."""
    members: str
    """What the list is called in its answer."""
    name: str
    """What a member calls its id."""
    cancel: str
    """How one is ended; empty where deleting does that."""


KINDS = [
    Kind("TrainingRun", "/jobs", "", "jobs", "job_id", "cancel"),
    Kind("ExperimentSweep", "/experiments", "", "experiments", "experiment_id", "cancel"),
    Kind("RLCampaign", "/campaigns", "", "campaigns", "campaign_id", "cancel"),
    Kind(
        "VerificationSuite",
        "/verifications",
        "verify/",
        "verifications",
        "verification_id",
        "cancel",
    ),
    Kind("CanaryRollout", "/rollouts", "canary/", "rollouts", "endpoint", "abort"),
    Kind("Endpoint", "/endpoints", "endpoint/", "endpoints", "name", ""),
]

GARBAGE: dict[str, Any] = {
    "text": "garbage",
    "old": {"version": 0, "what": ["nobody", "knows"]},
    "half": {"spec": {"algorithm": "from another age", "priority": 3}},
}
"""Inputs that no workflow can read, by how they are wrong."""


async def temporal(stack: Stack) -> Client:
    """A client that speaks past the gateway."""
    return await connect(TemporalSettings.model_validate(stack.state.settings["temporal"]))


async def wedge(client: Client, kind: Kind, name: str, what: str = "text") -> str:
    """Start one that is stuck; gives the id that the API knows it by."""
    await client.start_workflow(
        kind.workflow,
        GARBAGE[what],
        id=kind.prefix + name,
        task_queue=CONTROL_QUEUE,
    )
    return name


async def wedged_schedule(client: Client, name: str) -> None:
    """A schedule whose periods are stuck, one of them on now."""
    from temporalio.client import (
        Schedule,
        ScheduleActionStartWorkflow,
        ScheduleSpec,
        ScheduleState,
    )

    await client.create_schedule(
        schedule_id(name),
        Schedule(
            action=ScheduleActionStartWorkflow(
                "ContinualLearning",
                "garbage",
                id=f"continual-run/{name}",
                task_queue=CONTROL_QUEUE,
            ),
            spec=ScheduleSpec(cron_expressions=["0 0 1 1 *"]),
            state=ScheduleState(note=json.dumps(name)),
        ),
        trigger_immediately=True,
    )
