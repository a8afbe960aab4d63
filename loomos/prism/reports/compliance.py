"""Which evidence speaks to which article, function or control. Never says "compliant".

A clause is answered by tests, by facts about the run, or not at all by software; then it says so.
The clause's number and subject are given, never its text. Numbers were compared with public lists:
EU AI Act (Regulation (EU) 2024/1689), NIST AI 100-1, ISO/IEC 42001:2023 Annex A, ISO/IEC 27001:2022
Annex A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from loomos.errors import InvalidInput
from loomos.prism.judging import Evidence
from loomos.prism.verdicts import TestResult

Status = Literal["evidence present", "partial", "missing", "not applicable"]

STANDARDS = {
    "EU_AI_ACT": "EU AI Act, Regulation (EU) 2024/1689",
    "NIST_AI_RMF": "NIST AI Risk Management Framework 1.0",
    "ISO_42001": "ISO/IEC 42001:2023, Annex A",
    "ISO_27001": "ISO/IEC 27001:2022, Annex A",
}


class ClauseFinding(NamedTuple):
    """What there is about one clause."""

    standard: str
    """Key of `STANDARDS`."""
    clause: str
    """Number."""
    subject: str
    """What it is about."""
    status: Status
    """How much there is."""
    evidence: str
    """What there is, or what is missing."""


Finder = Callable[[Evidence], tuple[Status, str]]


def _tests(risks: Sequence[str]) -> Finder:
    """Evidence from the tests of some risks: all of them measured, some, or none."""

    def find(evidence: Evidence) -> tuple[Status, str]:
        found: dict[str, TestResult] = {}
        for test in evidence.tests:
            if test.risk in risks and "." not in test.name and test.verdict != "ERROR":
                found[test.risk] = test
        told = "; ".join(
            f"{test.name}: {test.failures} of {test.n}, {test.verdict}" for test in found.values()
        )
        missing = [risk for risk in risks if risk not in found]
        if not found:
            return "missing", f"no test of {', '.join(risks)}"
        if missing:
            return "partial", f"{told}; no test of {', '.join(missing)}"
        if any(test.verdict == "INCONCLUSIVE" for test in found.values()):
            return "partial", told
        return "evidence present", told

    return find


def _plan(evidence: Evidence) -> tuple[Status, str]:
    return (
        "evidence present",
        f"test sets, metrics and criteria were fixed before the run: plan {evidence.plan_sha256}",
    )


def _documentation(evidence: Evidence) -> tuple[Status, str]:
    return (
        "partial",
        f"test report with plan and digests for weights {evidence.plan.weights_sha256[:16]}; the "
        "system's general description and its risk management are not part of it",
    )


def _logs(evidence: Evidence) -> tuple[Status, str]:
    if evidence.is_local:
        return "missing", "this run was made outside a cluster and is in no ledger"
    return (
        "partial",
        f"run {evidence.verification_id} and its verdict are in the tamper-evident ledger; logs of "
        "the system in use are the operator's",
    )


def _comparison(evidence: Evidence) -> tuple[Status, str]:
    if not evidence.plan.baseline:
        return "missing", "not compared with the version in service"
    tests = [t for t in evidence.tests if t.name.endswith(".regression")]
    told = "; ".join(f"{t.name}: {t.verdict}" for t in tests)
    return "evidence present", f"compared with {evidence.plan.baseline}: {told}"


def _beyond(what: str) -> Finder:
    return lambda evidence: ("missing", f"{what}: beyond what a test of a model can show")


_ADVERSARIAL = ("prompt injection", "jailbreak")
_CLAUSES: dict[str, list[tuple[str, str, Finder]]] = {
    "EU_AI_ACT": [
        ("Article 9", "risk management system", _beyond("the risk management system")),
        ("Article 10", "data and data governance", _tests(["bias"])),
        ("Article 11, Annex IV", "technical documentation", _documentation),
        ("Article 12", "record-keeping", _logs),
        ("Article 14", "human oversight", _beyond("oversight in use")),
        ("Article 15(1)-(3)", "accuracy", _tests(["hallucination", "quality"])),
        ("Article 15(4)-(5)", "robustness and cybersecurity", _tests(_ADVERSARIAL)),
        (
            "Article 55(1)(a)",
            "model evaluation with adversarial testing, for models with systemic risk",
            _tests([*_ADVERSARIAL, "toxicity"]),
        ),
    ],
    "NIST_AI_RMF": [
        ("MEASURE 2.1", "test sets, metrics and tools are documented", _plan),
        ("MEASURE 2.3", "performance is measured as in deployment", _comparison),
        ("MEASURE 2.5", "validity and reliability", _tests(["hallucination", "quality"])),
        ("MEASURE 2.6", "safety", _tests(["toxicity", "jailbreak"])),
        ("MEASURE 2.7", "security and resilience", _tests(_ADVERSARIAL)),
        ("MEASURE 2.11", "fairness and bias", _tests(["bias"])),
        ("MANAGE 4.1", "monitoring after deployment", _beyond("monitoring in use; see rollouts")),
    ],
    "ISO_42001": [
        ("A.6.2.4", "verification and validation of the AI system", _plan),
        ("A.6.2.5", "deployment of the AI system", _comparison),
        ("A.6.2.6", "operation and monitoring of the AI system", _beyond("operation")),
        ("A.6.2.7", "technical documentation of the AI system", _documentation),
        ("A.6.2.8", "recording of event logs", _logs),
    ],
    "ISO_27001": [
        ("A.8.15", "logging", _logs),
        ("A.8.16", "monitoring activities", _beyond("monitoring in use; see rollouts")),
        ("A.8.29", "security testing in development and acceptance", _tests(_ADVERSARIAL)),
        ("A.8.32", "change management", _comparison),
        (
            "A.7",
            "physical controls",
            lambda evidence: ("not applicable", "a model has no premises"),
        ),
    ],
}


def map_evidence(evidence: Evidence, standards: Sequence[str]) -> list[ClauseFinding]:
    """What there is about each clause of some standards.

    Raises:
        InvalidInput: a standard is not known here.
    """
    found: list[ClauseFinding] = []
    for standard in standards:
        if standard not in STANDARDS:
            raise InvalidInput(f"standards: no {standard!r}; known: {', '.join(STANDARDS)}")
        for clause, subject, find in _CLAUSES[standard]:
            status, text = find(evidence)
            found.append(ClauseFinding(standard, clause, subject, status, text))
    return found
