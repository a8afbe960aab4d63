from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loomos.arguments import take_arguments
from loomos.settings import load_settings

PROCESSES = (
    "workers.control",
    "workers.gpu",
    "workers.ledger",
    "workers.serve",
    "api.openapi",
    "loomos.stack.supervisor",
    "loomos.training.host",
    "loomos.training.rank",
    "loomos.training.export",
    "loomos.weaver.runner",
    "loomos.weaver.suggesting",
    "loomos.prism.classify",
    "loomos.rl.language.reward_process",
    "loomos.client.twin",
    "benchmarks.run",
)


def test_options_are_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOOMOS_NODE__MAX_RANKS", "1")
    monkeypatch.setenv("LOOMOS_NODE__ID", "before")
    given = ["--node-id", "gpu-7", "--node-max-ranks=3"]
    take_arguments("workers.gpu", "doc", ("node",), given)
    assert (load_settings().node.id, load_settings().node.max_ranks) == ("gpu-7", 3)
    with pytest.raises(SystemExit) as stop:
        take_arguments("workers.gpu", "doc", ("storage",), ["--storage-secret-key", "x"])
    assert stop.value.code == 2
    assert take_arguments("m", "doc", given=["a", "b"], needs={"x": "", "y": ""}) == ["a", "b"]
    assert "unrecognized arguments: --storage-secret-key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(name, marks=() if name == "workers.gpu" else pytest.mark.slow)
        for name in PROCESSES
    ],
)
def test_help_starts_nothing(module: str) -> None:
    """With the address of nothing: a process that started would wait for it."""
    environment = os.environ | {"LOOMOS_TEMPORAL__ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {module}" in done.stdout
