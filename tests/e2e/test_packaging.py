"""What gets installed: the wheel holds only `loomos`, and the base install speaks HTTP only."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_base_install_is_light_and_holds_only_loomos(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True, timeout=120
    )
    (wheel,) = tmp_path.glob("*.whl")
    roots = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"loomos"}

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), str(wheel)],
        check=True,
        timeout=200,
    )
    shown = subprocess.run(
        [str(venv / "bin" / "loomos"), "--help"], capture_output=True, text=True, check=True
    )
    assert "AI training as durable pipelines" in shown.stdout
    listing = subprocess.run(
        [str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" not in listing and "temporalio" not in listing
    schema = subprocess.run(
        [str(venv / "bin" / "loomos"), "jobs", "schema"], capture_output=True, text=True, check=True
    )
    assert "TrainingJob" in schema.stdout
