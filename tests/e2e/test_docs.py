"""Every Python block of the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from loomos.client.http import LoomOSClient
from loomos.jobs.states import JobState
from loomos.weaver import Trial
from tests.serving import save_tiny
from tests.stack import CORPUS, Stack

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name} {number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
async def test_a_block_runs(
    block: str,
    stack: Stack,
    client: LoomOSClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("LOOMOS_STATE_DIR", "LOOMOS_CONFIG"):
        monkeypatch.setenv(name, stack.environment[name])
    names: dict[str, Any] = {}
    exec(compile(block, "<documentation>", "exec"), names)
    if "serve" in names:
        assert "@" in await names["serve"](save_tiny(tmp_path / "m", 5))
    if "check" in names:
        verdict = await names["check"](save_tiny(tmp_path / "m", 5), tmp_path)
        assert verdict == "INCONCLUSIVE"
    if "lead" in names:
        assert await names["lead"](6.0) == ["follower -> leader", "leader -> follower"]
    if "schedule" in names:
        scheduler = names["Scheduler"](client)
        for job_id in await names["schedule"](str(CORPUS)):
            await stack.eventually(
                lambda job_id=job_id: scheduler.get_job_status(job_id),  # type: ignore[misc]
                lambda job: job.state == JobState.COMPLETED,
            )
    if "objective" in names:
        saved: list[bytes] = []
        trial = Trial(
            number=0,
            params={"rate": 0.5},
            seed=0,
            arguments={},
            rule=None,
            most_reports=200,
            state=None,
            reports=[],
            on_report=lambda step, value: None,
            on_save=saved.append,
        )
        assert names["objective"](trial) == 0.5**20
        assert len(saved) == len(trial.reports) == 10
    if "play" in names:
        assert await names["play"]() < 10
    if "count" in names:
        assert await names["count"]() == 2
    if "campaign" in names:
        assert 0 <= await names["campaign"]() <= 1
    if "search" in names:
        await names["search"]()
    if "train" in names:
        job_id = await names["train"](str(CORPUS))
        assert (await client.get_job_status(job_id)).state == JobState.COMPLETED


def test_the_pages_that_the_readme_names_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
