"""The command line's manners: errors in one line, names, exit codes, 80 columns, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from loomos import __version__
from tests.stack import LOOMOS, Stack, tiny_job

PROBE: dict[str, Any] = {
    "apiVersion": "loomos.ai/v1",
    "kind": "TrainingJob",
    "metadata": {"name": "cli-face"},
    "spec": {"algorithm": "noop"},
}

WRONG = [
    "nonsense",
    "jobs nonsense",
    "jobs submit",
    "jobs submit /no/such/file",
    "jobs submit a.yaml -f b.yaml",
    "jobs submit /",
    "jobs submit -f {binary}",
    "jobs submit -f {file} -p x",
    "jobs submit-batch --template {file} --params {binary}",
    "jobs describe",
    "jobs describe nothing",
    "jobs describe ../../etc",
    "jobs describe A%B",
    "jobs list --limit x",
    "jobs list --status sleeping",
    "jobs list --cursor x",
    "jobs logs nothing --tail 0",
    "jobs logs nothing --since yesterday",
    "jobs metrics nothing --every -1",
    "jobs wait nothing",
    "jobs pause nothing",
    "jobs change nothing --priority 9",
    "jobs migrate nothing --to nowhere",
    "jobs delete nothing",
    "jobs download nothing",
    "jobs validate -f {binary}",
    "experiments run {binary}",
    "experiments status nothing",
    "experiments best nothing",
    "experiments plot nothing --kind pie",
    "experiments export nothing",
    "campaigns run {file}",
    "campaigns rounds nothing",
    "models describe nothing",
    "models describe nothing@1",
    "models upload / --name x",
    "models alias nothing@1 stable",
    "models edit nothing --tag x",
    "models deploy nothing --endpoint x",
    "models infer nothing hello",
    "models delete nothing",
    "endpoints describe nothing",
    "endpoints delete nothing",
    "endpoints load nothing --for 1s",
    "endpoints load nothing --for soon",
    "verify start",
    "verify start nope@1",
    "verify start nope@1 --suite nonsense",
    "verify delete nothing",
    "campaigns delete nothing",
    "rollouts delete nothing",
    "rollouts start --endpoint BAD~NAME --model nope@1",
    "verify status nothing",
    "verify report nothing --to x.pdf",
    "rollouts start --endpoint x",
    "rollouts start --endpoint x --model nope@1",
    "rollouts status nothing",
    "rollouts approve nothing --stage x",
    "schedules create {binary}",
    "schedules describe nothing",
    "workers describe nothing",
    "workers drain nothing",
    "scheduler set --weight x",
    "scheduler set --quota x",
    "scheduler set --policy nothing",
    "scheduler set --starves-after soon",
    "events list --limit 0",
    "ledger prove 999999999",
    "ledger verify /no/such/file",
    "ledger audit --policy /no/such/file",
    "ledger keygen x /dev/null/key",
    "provenance show nothing",
    "provenance show nothing@1",
    "config get nothing",
    "config set cluster.timeout soon",
    "auth create-token x --lifetime soon",
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    probe, binary = tmp_path / "probe.yaml", tmp_path / "binary"
    probe.write_text(yaml.safe_dump(PROBE))
    binary.write_bytes(b"\x80\xff\x00 \xed\xa0\x80")
    return {"file": probe, "binary": binary}


def in_one_process(
    stack: Stack, commands: list[list[str]], columns: int | None = None
) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each: most of what a command costs is to start Python."""
    script = (
        "import contextlib, io, json, os, sys\n"
        "from loomos.cli import run\n"
        "for line in json.load(sys.stdin):\n"
        "    sys.argv = ['loomos', *line]\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = run()\n"
        "    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)\n"
        "os._exit(0)\n"
    )
    environment = {**stack.environment, **({"COLUMNS": str(columns)} if columns else {})}
    done = subprocess.run(
        [LOOMOS[0], "-c", script],
        input=json.dumps(commands),
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(commands), done.stderr
    return answers


def test_every_mistake_is_one_line_and_exit_2(stack: Stack, files: dict[str, Path]) -> None:
    lines = [[word.format(**files) for word in line.split()] for line in WRONG]
    answers = in_one_process(stack, lines)
    bad = {
        line: answer
        for line, answer in zip(WRONG, answers, strict=True)
        if answer[0] != 2
        or answer[1]
        or len(answer[2].splitlines()) != 1
        or not answer[2].startswith("error: ")
        or "unexpected" in answer[2].split("(see")[0].replace("Got unexpected", "")
    }
    assert not bad


def test_the_version_is_told(stack: Stack) -> None:
    assert stack.loomos("--version").stdout == f"loomos {__version__}\n"


def test_names_and_beginnings_of_ids_resolve(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(PROBE | {"metadata": {"name": "named-once"}}))
    submitted = json.loads(stack.loomos("jobs", "submit", str(path), "-o", "json").stdout)
    job_id = submitted["job_id"]
    stack.loomos("jobs", "wait", "named-once")
    assert job_id in stack.loomos("jobs", "describe", job_id[:-3]).stdout
    again = json.loads(stack.loomos("jobs", "submit", str(path), "-o", "json").stdout)
    refused = stack.loomos("jobs", "describe", "named-once", check=False)
    assert refused.returncode == 2
    assert "may mean 2 jobs" in refused.stderr
    assert job_id in refused.stderr and again["job_id"] in refused.stderr
    assert stack.loomos("workers", "describe", "node-1").stdout.startswith("node")
    assert (
        "may mean 2 nodes: node-1, node-2"
        in stack.loomos("workers", "describe", "node", check=False).stderr
    )


def test_a_failed_job_is_exit_1_and_a_completed_one_0(stack: Stack, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"no text": 1}\n')
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_job("fails", corpus=broken)))
    done = stack.loomos("jobs", "submit", str(path), "--wait", check=False)
    assert done.returncode == 1, done.stderr
    assert "failed" in done.stdout
    path.write_text(yaml.safe_dump(PROBE))
    assert stack.loomos("jobs", "submit", str(path), "--wait").returncode == 0


def test_ctrl_c_says_that_the_job_goes_on(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_job("goes-on", max_steps=100_000)))
    process = subprocess.Popen(
        [*LOOMOS, "jobs", "submit", str(path), "--wait"],
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process that was started in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    job_id = process.stdout.readline().split()[1]
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=60)
        state = json.loads(stack.loomos("jobs", "describe", job_id, "-o", "json").stdout)["state"]
    finally:
        process.kill()
        stack.loomos("jobs", "cancel", job_id)
    assert process.returncode == 130
    assert f"job {job_id} goes on; `loomos jobs wait {job_id}` follows it" in error
    assert "Traceback" not in error
    assert state not in ("cancelled", "failed")


LISTS = [
    ("jobs", "list"),
    ("models", "list"),
    ("endpoints", "list"),
    ("verify", "list"),
    ("rollouts", "list"),
    ("experiments", "list"),
    ("campaigns", "list"),
    ("schedules", "list"),
    ("workers", "list"),
    ("cluster", "status"),
    ("cluster", "resources"),
    ("scheduler", "status"),
    ("events", "list"),
    ("ledger", "status"),
    ("config", "view"),
    ("status",),
]
WORDS = re.compile(r"[a-z0-9-]+-[0-9a-f]{8,}|https?://\S+|[0-9a-f]{32,}")


def test_ids_and_urls_are_whole_at_80_columns(stack: Stack) -> None:
    commands = [list(command) for command in LISTS]
    wide = in_one_process(stack, commands)
    for (_, whole, _), (_, narrow, _) in zip(
        wide, in_one_process(stack, commands, columns=80), strict=True
    ):
        words = {word.rstrip(",;") for word in narrow.split()}
        is_spared = "not shown, for lack of width" in narrow
        for word in WORDS.findall(whole):
            assert is_spared or any(word in other for other in words), (word, narrow)
        for line in narrow.splitlines():
            assert len(line) <= 80 or len(line.split()) <= 2, line
