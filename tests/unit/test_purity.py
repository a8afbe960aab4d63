"""Who may load what: looked at in fresh processes, where nothing else has been imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


HEAVY = {"torch", "transformers", "boto3", "cryptography", "numpy", "pyarrow"}


def test_workflow_modules_load_only_messages_and_temporalio() -> None:
    modules = sorted(f"workflows.{p.stem}" for p in (ROOT / "workflows").glob("[a-z]*.py"))
    assert len(modules) > 20
    if loaded_by(f"import {', '.join(modules)}") & HEAVY:
        heavy = {module: loaded_by(f"import {module}") & HEAVY for module in modules}
        assert not {module: found for module, found in heavy.items() if found}


@pytest.mark.parametrize(
    "statement",
    [
        "import loomos",
        "from loomos import LoomOSClient, JobSpec, JobManifest, ManifestValidator",
        "import loomos.cli.app",
    ],
)
def test_the_sdk_and_the_cli_load_neither_torch_nor_temporalio(statement: str) -> None:
    assert not loaded_by(statement) & (HEAVY | {"temporalio"})


@pytest.mark.parametrize("module", ["workers.control", "workers.gpu", "api.app"])
def test_workers_and_gateway_never_load_torch(module: str) -> None:
    heavy = {"torch", "transformers", "peft", "inspect_ai", "scipy", "typst", "tokenizers"}
    assert not loaded_by(f"import {module}") & heavy


def test_the_path_of_a_job_goes_through_the_six_files_of_the_readme() -> None:
    path = [
        "api/routes/jobs.py",
        "workflows/training.py",
        "activities/train.py",
        "loomos/training/loop.py",
        "loomos/training/checkpoint.py",
        "api/stream.py",
    ]
    readme = (ROOT / "README.md").read_text()
    assert all((ROOT / file).exists() for file in path)
    assert sorted(path, key=readme.index) == path
