"""Recorded histories replay: a change of a workflow that would break running jobs fails here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from loomos.client.temporal import loom_plugin
from workers.control import WORKFLOWS, sandbox

HISTORIES = sorted(Path(__file__).with_name("histories").glob("*.json"))


def read(path: Path) -> WorkflowHistory:
    recorded = json.loads(path.read_text())
    return WorkflowHistory.from_json(recorded["id"], recorded["history"])


def replayer() -> Replayer:
    return Replayer(workflows=WORKFLOWS, workflow_runner=sandbox(), plugins=[loom_plugin()])


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path) -> None:
    await replayer().replay_workflow(read(path))


async def test_an_incompatible_change_would_be_noticed() -> None:
    """The same replay with two events' order changed does fail, so the test above can."""
    recorded = json.loads((HISTORIES[0].parent / "recovered.json").read_text())
    for event in recorded["history"]["events"]:
        attributes = event.get("activityTaskScheduledEventAttributes")
        if attributes and attributes["activityType"]["name"] == "open_attempt":
            attributes["activityType"]["name"] = "something_else"
    history = WorkflowHistory.from_json(recorded["id"], recorded["history"])
    with pytest.raises(Exception, match="Nondeterminism"):
        await replayer().replay_workflow(history)


def test_every_workflow_has_a_history_and_one_recovers() -> None:
    kinds = set()
    for path in HISTORIES:
        first = json.loads(path.read_text())["history"]["events"][0]
        kinds.add(first["workflowExecutionStartedEventAttributes"]["workflowType"]["name"])
    assert kinds == {
        "TrainingRun",
        "Cluster",
        "Endpoint",
        "ModelChange",
        "CanaryRollout",
        "VerificationSuite",
        "ContinualLearning",
        "Leadership",
        "ExperimentSweep",
        "RLCampaign",
    }
    text = (HISTORIES[0].parent / "recovered.json").read_text()
    assert text.count('"name": "train"') == 4, "two nodes, two attempts"
