"""The examples do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import Stack

EXAMPLES = Path(__file__).parents[2] / "examples"


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
