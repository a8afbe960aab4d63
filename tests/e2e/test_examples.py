"""The examples do what they say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import Stack

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, stack: Stack, **environment: str) -> str:
    """Run one as a person would; what it prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        env={**stack.environment, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_quick_demo_plays_ten_episodes(stack: Stack, tmp_path: Path) -> None:
    said = run_example("quick_demo", stack, LOOMOS_LOOMDB__URL=f"sqlite:///{tmp_path}/demo.db")
    assert said.count("Reward = ") == 10
    assert re.search(r"Average reward: \d\.\d\d", said)


def test_loomos_is_used_as_any_library(stack: Stack, tmp_path: Path) -> None:
    said = run_example(
        "normal_usage_patterns", stack, LOOMOS_LOOMDB__URL=f"sqlite:///{tmp_path}/usage.db"
    )
    assert "Results of 2 environments: {'math': 0.0, 'code': 0.0}" in said
    assert "Expected error: the ledger knows no job 'nonexistent_job'" in said
    assert "Event: performance_metric 0.95" in said
    assert "Created trainer: WeaveAlgorithm" in said


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_the_gym_trains_in_several_environments(stack: Stack) -> None:
    said = run_example("rl_gym_usage", stack)
    assert "Code environment initialized with 3 languages" in said
    assert said.count("is over") == 6  # before training, and after each of five rounds
    rates = re.findall(r"Success Rate: ([\d.]+)%", said)
    assert len(rates) == 3


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_weave_runs_alone_as_apollo_and_in_the_gym(stack: Stack) -> None:
    said = run_example("weave_complete_demo", stack)
    assert len(re.findall(r"Step \d: Loss=", said)) == 5
    weights = re.search(r"Objective Weights: (\{.*\})", said)
    assert weights is not None, said
    assert sum(ast.literal_eval(weights[1]).values()) == pytest.approx(1)
    assert re.search(r"Curriculum Effective: (True|False)", said)
    assert re.search(r"math: -?\d+\.\d{3}\n\s+code: -?\d+\.\d{3}", said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_model_goes_from_guessing_to_calculating(stack: Stack, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "grpo_math" / "run.py", "--plot", plot],
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"right answers: (\d+)% of samples before,\s+(\d+)% after", done.stdout)
    assert said is not None, done.stdout
    before, after = int(said[1]), int(said[2])
    assert 8 <= before <= 22  # one in seven, by chance
    assert after > 80
    assert plot.read_bytes().startswith(b"\x89PNG")
