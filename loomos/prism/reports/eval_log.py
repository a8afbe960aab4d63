"""Evidence as logs of inspect_ai, which `inspect view` opens: one `.eval` file per suite."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from loomos.prism.answers import Answer
from loomos.prism.judging import Evidence
from loomos.prism.verdicts import TestResult, Unit


def write_eval_logs(
    evidence: Evidence, details: dict[str, list[tuple[Answer, Unit]]], folder: Path
) -> list[Path]:
    """Write a log per suite; returns their paths.

    Args:
        evidence: what was found.
        details: every answer with its score, by suite.
        folder: where to.
    """
    from inspect_ai.log import write_eval_log

    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for suite, rows in details.items():
        test = next(test for test in evidence.tests if test.name == suite)
        path = folder / f"{suite}.eval"
        write_eval_log(_log(evidence, suite, test, rows), str(path), format="eval")
        paths.append(path)
    return paths


def encode_eval_logs(
    evidence: Evidence, details: dict[str, list[tuple[Answer, Unit]]]
) -> dict[str, bytes]:
    """The logs by file name."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_eval_logs(evidence, details, Path(folder))
        return {path.name: path.read_bytes() for path in paths}


def _log(evidence: Evidence, suite: str, test: TestResult, rows: list[tuple[Answer, Unit]]) -> Any:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalPlan,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )

    planned = evidence.plan.suite(suite)
    moment = evidence.finished_at.isoformat()
    identity = f"{evidence.plan_sha256[:16]}-{suite}"
    metrics = {
        "failure_rate": EvalMetric(
            name="failure_rate",
            value=test.rate,
            metadata={
                "interval": list(test.interval),
                "method": "Clopper-Pearson, 95 %",
                "claim": test.claim,
                "verdict": test.verdict,
                "reason": test.reason,
                "effective_n": test.effective_n,
            },
        )
    }
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=evidence.plan_sha256[:22],
            task_id=identity,
            created=moment,
            task=f"prism/{suite}",
            task_version=planned.header.version,
            model=evidence.plan.version,
            dataset=EvalDataset(name=suite, samples=len(rows)),
            config=EvalConfig(epochs=planned.generations),
            metadata={
                "verification": evidence.verification_id,
                "plan_sha256": evidence.plan_sha256,
                "suite_sha256": planned.sha256,
                "detector": planned.header.detector,
                "overall_verdict": evidence.verdict,
            },
        ),
        plan=EvalPlan(name="prism"),
        stats=EvalStats(started_at=moment, completed_at=moment),
        results=EvalResults(
            total_samples=len(rows),
            completed_samples=len(rows),
            scores=[
                EvalScore(
                    name=planned.header.detector,
                    scorer=planned.header.detector,
                    scored_samples=len(rows) - test.unknown,
                    unscored_samples=test.unknown,
                    metrics=metrics,
                )
            ],
        ),
        samples=[_sample(evidence, planned.header.detector, a, u) for a, u in rows],
    )


def _sample(evidence: Evidence, detector: str, answer: Answer, unit: Unit) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ModelOutput,
    )
    from inspect_ai.scorer import Score

    turns: list[Any] = [ChatMessageUser(content=answer.prompt, id=f"{unit.id}/user")]
    if answer.system:
        turns.insert(0, ChatMessageSystem(content=answer.system, id=f"{unit.id}/system"))
    said = ChatMessageAssistant(content=answer.answer, id=f"{unit.id}/assistant")
    output = ModelOutput.from_content(evidence.plan.version, answer.answer)
    value: Any = "N" if unit.failed is None else "I" if unit.failed else "C"
    return EvalSample(
        id=answer.id,
        epoch=answer.generation + 1,
        input=turns,
        target="",
        messages=[*turns, said],
        output=output,
        scores={detector: Score(value=value, answer=answer.answer)},
        metadata={"cluster": answer.cluster, "latency_s": answer.latency_s},
        total_time=answer.latency_s,
        uuid=f"{evidence.plan_sha256[:12]}-{unit.id}",
    )
