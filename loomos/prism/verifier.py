"""Prism in one process: verify a model in a folder, or behind a server, without a cluster.

The same plan, shards, statistics and reports as the `VerificationSuite` workflow, and the same
cache: what was generated once under `~/.loomos/prism` is not generated again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from loomos.errors import InvalidInput
from loomos.jobs.serving import FileFacts
from loomos.jobs.verification import Verdict
from loomos.manifest import SuiteChoice, Verification
from loomos.prism.answers import Generator, generate_shard, has_answers
from loomos.prism.judging import LOCAL_PREFIX, Evidence, details, judge_plan
from loomos.prism.plan import make_plan, store_plan
from loomos.prism.planned import Plan
from loomos.prism.reports.compliance import STANDARDS, ClauseFinding, map_evidence
from loomos.prism.verdicts import TestResult
from loomos.registry import Registry
from loomos.storage import Store
from loomos.storage._local import LocalStore
from loomos.storage.layout import blob_key

BUILT_IN_DATASET = "safety_benchmark_v1"
"""The built-in suites, by the name that examples use."""

Progress = Callable[[int, int], None]
"""Called with the shards that are done and all shards."""


class SafetyTest(StrEnum):
    """The built-in suites."""

    TOXICITY_DETECTION = "toxicity"
    BIAS_EVALUATION = "bias"
    FACTUALITY_CHECK = "factuality"
    PROMPT_INJECTION_RESISTANCE = "injection"
    JAILBREAK_DETECTION = "jailbreak"
    QUALITY = "quality"


@dataclass(frozen=True)
class VerificationSuite:
    """What a model is asked.

    Args:
        tests: built-in suites, or paths of JSONL files.
        options: fields of `loomos.manifest.Verification`, such as `alpha` or `max_prompts`.
    """

    tests: Sequence[SafetyTest | str]
    options: dict[str, Any] = field(default_factory=dict)

    def to_spec(self, more: Sequence[str] = ()) -> Verification:
        """As a manifest has it."""
        suites = [SuiteChoice(suite=str(test)) for test in (*self.tests, *more)]
        return Verification(suites=suites, **self.options)


class VerificationResults(NamedTuple):
    """What a verification found."""

    evidence: Evidence
    """All of it."""

    @property
    def verdict(self) -> Verdict:
        """Over all suites."""
        return self.evidence.verdict

    @property
    def overall_score(self) -> float:
        """Mean share of prompts that did not fail; to look at, nothing is decided by it."""
        return self.evidence.overall_score

    @property
    def test_results(self) -> dict[str, TestResult]:
        """Every test, by name."""
        return {test.name: test for test in self.evidence.tests}


class ComplianceReport(NamedTuple):
    """Evidence, mapped to what standards ask for."""

    evidence: Evidence
    """What was found."""
    standards: list[str]
    """Keys of the standards."""
    findings: list[ClauseFinding]
    """What there is about each clause."""


class Prism:
    """Verifies models in this process.

    Args:
        cache: folder for answers and evidence. Default: `~/.loomos/prism`.
    """

    def __init__(self, cache: Path | None = None) -> None:
        folder = cache or Path.home() / ".loomos" / "prism"
        folder.mkdir(parents=True, exist_ok=True)
        self._store: Store = LocalStore(folder)

    async def verify_model(
        self,
        model_path: str | Path,
        verification_suite: VerificationSuite,
        test_dataset: str | Path = BUILT_IN_DATASET,
        *,
        progress: Progress | None = None,
    ) -> VerificationResults:
        """Verify a model in a folder that `save_pretrained` wrote.

        Args:
            model_path: the folder.
            verification_suite: what it is asked.
            test_dataset: `safety_benchmark_v1` for the built-in prompts; or a JSONL file of your
                own, which is asked besides.
            progress: called after each shard.

        Raises:
            InvalidInput: the folder holds no model, or a suite is malformed.
            InvalidModel: transformers cannot load it.
        """
        more = [] if str(test_dataset) == BUILT_IN_DATASET else [str(test_dataset)]
        spec = verification_suite.to_spec(more)
        return await asyncio.to_thread(
            self._verify, Path(model_path), spec, progress or (lambda done, total: None)
        )

    def _verify(self, folder: Path, spec: Verification, progress: Progress) -> VerificationResults:
        from loomos.prism.generate import OFFLINE_BATCH, EngineGenerator
        from loomos.serving.engine import Engine
        from loomos.serving.loading import load_model

        version = _register(self._store, folder)
        plan = make_plan(self._store, version, spec)
        store_plan(self._store, plan)
        if all(has_answers(self._store, shard) for shard in plan.shards):
            return VerificationResults(self._judged(plan))
        engine = Engine(*load_model(folder), max_batch=OFFLINE_BATCH)
        try:
            run_plan(self._store, plan, EngineGenerator(engine), progress)
        finally:
            engine.close()
        return VerificationResults(self._judged(plan))

    def _judged(self, plan: Plan) -> Evidence:
        return judge_plan(self._store, plan, LOCAL_PREFIX + plan.sha256[:12], lambda what: None)

    async def generate_compliance_report(
        self, results: VerificationResults, standards: Sequence[str]
    ) -> ComplianceReport:
        """Map what was found to the clauses of standards.

        Args:
            results: of `verify_model`.
            standards: keys of `loomos.prism.STANDARDS`, such as `EU_AI_ACT`.

        Raises:
            InvalidInput: a standard is not known.
        """
        findings = map_evidence(results.evidence, standards)
        return ComplianceReport(results.evidence, list(standards), findings)

    async def export_report(self, report: ComplianceReport, path: str | Path) -> Path:
        """Write a report; the suffix chooses: `.pdf` (PDF/A-2a), `.html`, `.json`.

        Without a suffix a folder of that name gets one log per suite, for `inspect view`.

        Raises:
            InvalidInput: another suffix.
        """
        return await asyncio.to_thread(self._export, report, Path(path))

    def _export(self, report: ComplianceReport, path: Path) -> Path:
        from loomos.prism.reports.documents import render_html, render_pdf
        from loomos.prism.reports.eval_log import write_eval_logs

        evidence = report.evidence
        if path.suffix == ".pdf":
            path.write_bytes(render_pdf(evidence, report.standards))
        elif path.suffix == ".html":
            path.write_text(render_html(evidence, report.standards), encoding="utf-8")
        elif path.suffix == ".json":
            path.write_bytes(evidence.encode())
        elif path.suffix == "":
            write_eval_logs(evidence, details(self._store, evidence), path)
        else:
            raise InvalidInput(f"{path.name}: write to .pdf, .html, .json, or a folder for logs")
        return path


def run_plan(store: Store, plan: Plan, generator: Generator, progress: Progress) -> None:
    """Generate every shard that is not there; all of them with one generator."""
    for done, shard in enumerate(plan.shards):
        if not has_answers(store, shard):
            generate_shard(store, plan, shard, generator)
        progress(done + 1, len(plan.shards))


def _register(store: Store, folder: Path) -> str:
    """Make a version of a folder in the local registry; returns `NAME@VERSION`."""
    if not (folder / "config.json").exists():
        raise InvalidInput(f"model_path: {folder} has no config.json; name a transformers folder")
    files: dict[str, FileFacts] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or path.name == "manifest.json":
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = FileFacts(
            sha256=digest, size_bytes=path.stat().st_size
        )
        if not store.exists(blob_key(digest)):
            store.put_file(blob_key(digest), path)
    manifest = Registry(store).write("local", files, {"folder": str(folder)})
    return f"{manifest.name}@{manifest.version}"


__all__ = [
    "STANDARDS",
    "ComplianceReport",
    "Prism",
    "SafetyTest",
    "VerificationResults",
    "VerificationSuite",
    "run_plan",
]
