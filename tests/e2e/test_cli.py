"""The command line as people and scripts use it: output, exit codes, no crash at exit."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.malformed import Malformed, malformed
from tests.stack import LOOMOS, Stack, tiny_job


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    document = {
        "apiVersion": "loomos.ai/v1",
        "kind": "TrainingJob",
        "metadata": {"name": "cli-probe"},
        "spec": {"algorithm": "noop"},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_job_from_submission_to_download(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    document = tiny_job("cli", max_steps=12)
    document["spec"]["model"]["fine_tuning_config"]["learning_rate"] = "{{ lr }}"
    path.write_text(yaml.safe_dump(document))
    done = stack.loomos("jobs", "submit", "-f", str(path), "-p", "lr=1e-3", "--wait")
    job_id = done.stdout.split()[1]
    assert f"job {job_id}: completed: published cli@" in done.stdout
    assert job_id in stack.loomos("jobs", "list", "--status", "completed").stdout
    described = json.loads(stack.loomos("jobs", "describe", job_id, "-o", "json").stdout)
    assert described["spec"]["model"]["fine_tuning_config"]["learning_rate"] == 1e-3
    assert "published cli@" in stack.loomos("jobs", "describe", job_id).stdout
    metrics = yaml.safe_load(stack.loomos("jobs", "metrics", job_id, "-o", "yaml").stdout)
    assert [m["step"] for m in metrics] == list(range(1, 13))
    assert "from the beginning" in stack.loomos("jobs", "logs", job_id).stdout
    assert "step 12 of 12" in stack.loomos("jobs", "logs", job_id, "--follow").stdout
    stack.loomos("jobs", "download", job_id, "--output", str(tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "llama"
    stack.loomos("jobs", "delete", job_id)


@pytest.mark.parametrize("case", malformed()[::5], ids=lambda case: case.name)
def test_a_malformed_manifest_is_exit_2_and_one_line(
    stack: Stack, tmp_path: Path, case: Malformed
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(case.document))
    done = stack.loomos("jobs", "submit", "-f", str(path), check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    named = case.field if case.field != "$" else "mapping"
    assert named in done.stderr


def test_validate_lists_every_error(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    document = tiny_job("Wrong Name")
    document["spec"]["priority"] = 9
    path.write_text(yaml.safe_dump(document))
    done = stack.loomos("jobs", "validate", "-f", str(path), check=False)
    assert done.returncode == 2
    assert {line.split(": ")[1] for line in done.stderr.splitlines()} == {
        "metadata.name",
        "spec.priority",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("jobs", "describe", "nothing"), 2, "no job 'nothing'"),
        (("jobs", "cancel", "nothing"), 2, "no job 'nothing'"),
        (("jobs", "submit", "-f", "/no/such/file"), 2, "No such file"),
        (("workers", "drain", "nothing"), 2, "no node 'nothing'"),
        (("config", "get", "cluster.endpont"), 2, "did you mean cluster.endpoint?"),
        (("config", "set", "cluster.timeout", "soon"), 2, "nothing was changed"),
        (("auth", "create-token", "me", "--lifetime", "soon"), 2, "--lifetime"),
        (("jobs", "list", "--label", "x"), 2, "--label 'x' is not name=value"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_errors_go_to_stderr_with_exit_2(
    stack: Stack, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = stack.loomos(*arguments, check=False)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_gateway_is_said_so(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LOOMOS_CLUSTER__ENDPOINT": "http://127.0.0.1:9",
        "LOOMOS_CLUSTER__RETRIES": "0",
        "LOOMOS_STATE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [*LOOMOS, "jobs", "list"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "gateway at http://127.0.0.1:9 cannot be reached" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_config_is_written_and_its_origin_shown(stack: Stack, tmp_path: Path) -> None:
    stack.loomos("config", "set", "cluster.timeout", "7")
    assert stack.loomos("config", "get", "cluster.timeout").stdout == "7.0\n"
    rows = json.loads(stack.loomos("config", "view", "-o", "json").stdout)
    origin = {row["name"]: row["source"] for row in rows}
    assert origin["cluster.timeout"].endswith("no-config.yaml")
    assert origin["cluster.endpoint"] == "local stack"
    Path(stack.environment["LOOMOS_CONFIG"]).unlink()


def test_a_minted_token_logs_in(stack: Stack) -> None:
    endpoint = stack.state.settings["cluster"]["endpoint"]
    token = stack.loomos("auth", "create-token", "ada", "--scope", "read").stdout.strip()
    assert (
        "logged in"
        in stack.loomos("auth", "login", "--endpoint", endpoint, "--token", token).stdout
    )
    assert "accepts the token" in stack.loomos("auth", "check").stdout
    bad = stack.loomos("auth", "login", "--endpoint", endpoint, "--token", "x", check=False)
    assert bad.returncode == 2 and "not valid" in bad.stderr
    Path(stack.environment["LOOMOS_CONFIG"]).unlink()


def test_status_and_schema_are_for_machines_too(stack: Stack) -> None:
    status = json.loads(stack.loomos("status", "-o", "json").stdout)
    assert {m["name"] for m in status["members"] if m["healthy"]} == {
        "temporal",
        "s3",
        "ledger",
        "gateway",
        "control",
        "node-1",
        "node-2",
        "serve-1",
    }
    schema = json.loads(stack.loomos("jobs", "schema").stdout)
    assert schema["properties"]["kind"]["const"] == "TrainingJob"


def test_help_costs_little() -> None:
    """Processor time, not wall time: what a person waits for on an idle machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    runs = 5
    for _ in range(runs):
        subprocess.run([*LOOMOS, "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / runs
    print(f"loomos --help: {cpu_s * 1000:.0f} ms of processor time")
    heavy = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import loomos.cli.app"],
        capture_output=True,
        text=True,
    ).stderr
    assert not any(name in heavy for name in ("httpx", "pydantic", "temporalio", "torch"))


COMMANDS: list[tuple[tuple[str, ...], int]] = [
    (("--help",), 0),
    (("jobs", "list"), 0),
    (("jobs", "describe", "nothing"), 2),
    (("workers", "list", "-o", "json"), 0),
    (("cluster", "status"), 0),
    (("config", "view"), 0),
    (("jobs", "schema"), 0),
    (("status",), 0),
]


@pytest.mark.parametrize("runs", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("arguments", "code"), COMMANDS, ids=lambda x: str(x))
@pytest.mark.timeout(600)
def test_every_run_ends_with_the_right_code(
    stack: Stack, arguments: tuple[str, ...], code: int, runs: int
) -> None:
    with ThreadPoolExecutor(2) as pool:
        codes = pool.map(lambda _: stack.loomos(*arguments, check=False).returncode, range(runs))
        assert Counter(codes) == {code: runs}
