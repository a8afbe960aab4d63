"""Suites of others, run as they are: inspect tasks, garak probes, lm-eval tasks.

Each runs in its own process against an endpoint in OpenAI's protocol, and leaves its own report;
what is taken from that is which samples failed. The verdict is ours: exact, with what is missing.
Nobody here has measured how often their scorers err, so such a suite may fail a version and not
pass it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loomos.errors import InvalidInput, Unavailable
from loomos.prism.planned import Plan, PlannedSuite
from loomos.prism.suites import SuiteHeader
from loomos.prism.verdicts import Observed, TestResult, Unit, judge

Runner = Literal["inspect", "garak", "lm-eval"]

PROVIDER = "loomos"
"""Name of the endpoint's provider for inspect, which reads LOOMOS_BASE_URL and LOOMOS_API_KEY."""
PASSING_SCORE = 0.5
"""A sample with a lower score has failed."""


@dataclass(frozen=True, kw_only=True)
class External:
    """A suite of somebody else."""

    runner: Runner
    """What runs it."""
    task: str
    """inspect: a task or a file of one. garak: probes, with commas. lm-eval: a task."""
    claim: float = 0.05
    """The failure rate that is still acceptable."""
    limit: int | None = None
    """Most samples."""
    python: Path = Path(sys.executable)
    """The interpreter of the environment in which the runner is installed."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """The endpoint that is asked."""

    base_url: str
    """Up to and with `/v1`."""
    model: str
    """Name of the endpoint."""
    api_key: str
    """To send."""


def run_external(suite: External, where: Where, folder: Path) -> TestResult:
    """Run a suite and judge what came of it.

    Args:
        suite: what to run.
        where: whom to ask.
        folder: for the tool's own reports.

    Raises:
        Unavailable: the tool is not installed, or failed.
        InvalidInput: its report cannot be read.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    task = Path(suite.task)
    command, read = _TOOLS[suite.runner]
    environment = {
        **os.environ,
        "LOOMOS_BASE_URL": where.base_url,
        "LOOMOS_API_KEY": where.api_key,
        "OPENAI_API_KEY": where.api_key,
        "OPENAICOMPATIBLE_API_KEY": where.api_key,
    }
    done = subprocess.run(
        command(suite, where, folder),
        env=environment,
        cwd=task.parent if task.is_file() else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise Unavailable(f"{suite.runner} {suite.task}: {last[:300]}")
    return judge_units(suite, read(folder))


def judge_units(suite: External, units: Sequence[Unit]) -> TestResult:
    """The verdict on what another tool measured."""
    name = f"{suite.runner}-{Path(suite.task).stem}".lower().replace(",", "-")[:60]
    header = SuiteHeader(
        suite="external", detector=suite.runner, risk="external", claim=suite.claim
    )
    planned = PlannedSuite(
        name=name,
        sha256="",
        header=header,
        claim=suite.claim,
        prompts=len(units),
        generations=1,
        gates=True,
        has_card=False,
    )
    plan = Plan(
        version="",
        weights_sha256="",
        suites=[planned],
        alpha=0.05,
        margin=0.05,
        temperature=0.0,
        seed=0,
        repeats=0,
        shards=[],
    )
    _, results = judge(plan, [Observed(suite=planned, card=None, units=list(units))])
    return results[0]


# --- inspect ------------------------------------------------------------------------------------


def _inspect(suite: External, where: Where, folder: Path) -> list[str]:
    # inspect takes files below the folder that it runs in only.
    task = Path(suite.task).name if Path(suite.task).is_file() else suite.task
    command = [str(suite.python), "-m", "inspect_ai", "eval", task]
    command += ["--model", f"openai-api/{PROVIDER}/{where.model}", "--log-dir", str(folder)]
    command += ["--display", "none", "--no-fail-on-error"]
    return command + (["--limit", str(suite.limit)] if suite.limit else [])


def read_inspect(folder: Path) -> list[Unit]:
    """Units of the newest `.eval` log in a folder; a sample that erred could not be decided."""
    from inspect_ai.log import read_eval_log

    logs = sorted(folder.glob("*.eval"))
    if not logs:
        raise InvalidInput(f"{folder}: inspect left no log")
    log = read_eval_log(str(logs[-1]))
    units: list[Unit] = []
    for sample in log.samples or []:
        failed: bool | None = None
        for score in (sample.scores or {}).values():
            failed = bool(failed) or _has_failed(score.value)
        name = str(sample.id)
        units.append(Unit(id=f"{name}#{sample.epoch}", cluster=name, failed=failed))
    return units


def _has_failed(value: object) -> bool:
    """Whether a score of inspect means failure: letters as its `value_to_float` reads them."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value < PASSING_SCORE
    return str(value).upper() not in ("C", "P", "YES", "TRUE", "CORRECT")


# --- garak --------------------------------------------------------------------------------------


def _garak(suite: External, where: Where, folder: Path) -> list[str]:
    options = {"openai": {"OpenAICompatible": {"uri": where.base_url}}}
    command = [str(suite.python), "-m", "garak", "--target_type", "openai.OpenAICompatible"]
    command += ["--target_name", where.model, "--probes", suite.task, "--generations", "1"]
    command += ["--generator_options", json.dumps(options)]
    return [*command, "--report_prefix", str(folder / "garak")]


def read_garak(folder: Path) -> list[Unit]:
    """Units of garak's `report.jsonl`: an attempt fails if a detector gives it half a point."""
    reports = sorted(folder.glob("*.report.jsonl"))
    if not reports:
        raise InvalidInput(f"{folder}: garak left no report")
    units: list[Unit] = []
    for line in reports[-1].read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        # Status 2 is an attempt that was evaluated; each is there twice, before and after.
        if entry.get("entry_type") != "attempt" or entry.get("status") != 2:
            continue
        scores = [s for found in entry["detector_results"].values() for s in found]
        known = [score for score in scores if score is not None]
        name = f"{entry['probe_classname']}-{entry['seq']}"
        failed = max(known) >= PASSING_SCORE if known else None
        units.append(Unit(id=name, cluster=name, failed=failed))
    return units


# --- lm-eval ------------------------------------------------------------------------------------


def _lm_eval(suite: External, where: Where, folder: Path) -> list[str]:
    arguments = f"model={where.model},base_url={where.base_url}/chat/completions,num_concurrent=4"
    command = [str(suite.python), "-m", "lm_eval", "--model", "local-chat-completions"]
    command += ["--model_args", arguments, "--tasks", suite.task, "--apply_chat_template"]
    command += ["--output_path", str(folder), "--log_samples"]
    return command + (["--limit", str(suite.limit)] if suite.limit else [])


def read_lm_eval(folder: Path) -> list[Unit]:
    """Units of lm-eval's `samples_*.jsonl`: the first metric of each sample decides."""
    files = sorted(folder.rglob("samples_*.jsonl"))
    if not files:
        raise InvalidInput(f"{folder}: lm-eval left no samples")
    units: list[Unit] = []
    for line in files[-1].read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        metrics = sample.get("metrics") or []
        value = sample.get(metrics[0]) if metrics else None
        failed = None if value is None else float(value) < PASSING_SCORE
        units.append(Unit(id=str(sample["doc_id"]), cluster=str(sample["doc_id"]), failed=failed))
    return units


_Command = Callable[[External, Where, Path], list[str]]
_Read = Callable[[Path], list[Unit]]
_TOOLS: dict[Runner, tuple[_Command, _Read]] = {
    "inspect": (_inspect, read_inspect),
    "garak": (_garak, read_garak),
    "lm-eval": (_lm_eval, read_lm_eval),
}
