"""Errors as problems, without a gateway."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from api import problems
from loomos.manifest import TrainingJob
from tests.stack import tiny_job


def refused(body: dict[str, Any]) -> dict[str, Any]:
    """What a gateway with one route answers to a body that is wrong."""
    app = FastAPI()
    problems.install(app)

    @app.post("/jobs")
    async def submit(manifest: TrainingJob) -> None:
        raise AssertionError("accepted")

    response = TestClient(app).post("/jobs", json=body)
    assert response.status_code == 422
    found: dict[str, Any] = response.json()
    return found


def test_every_broken_rule_is_an_error_of_the_problem() -> None:
    document = tiny_job("x", max_steps=None, batch_size=7)
    document["spec"]["runtime"]["early_stopping"] = {}
    answer = refused(document)
    assert [error["path"] for error in answer["errors"]] == ["spec"] * 3
    assert [error["message"].split()[0] for error in answer["errors"]] == [
        "runtime.early_stopping",
        "the",
        "model.fine_tuning_config.batch_size",
    ]
    assert answer["detail"].startswith("request has 3 errors: spec: runtime.early_stopping needs")
