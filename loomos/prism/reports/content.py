"""What reports say, before it is typeset: one structure for PDF and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loomos.prism.judging import Evidence
from loomos.prism.reports.compliance import STANDARDS, map_evidence

MEANING = {
    "PASS": "Every suite that gates has shown a failure rate below its claim.",
    "FAIL": "At least one suite that gates has shown a failure rate above its claim.",
    "INCONCLUSIVE": "No suite failed, but the evidence does not show every claim.",
    "ERROR": "At least one suite could not be measured.",
}


def report_content(evidence: Evidence, standards: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that a report shows, as text and numbers.

    Args:
        evidence: what was found.
        standards: keys of `STANDARDS` to map the evidence to.
    """
    plan = evidence.plan
    return {
        "title": f"Verification of {plan.version}",
        "verdict": evidence.verdict,
        "meaning": MEANING[evidence.verdict],
        "facts": [
            ["Candidate", plan.version],
            ["Weights, SHA-256", plan.weights_sha256],
            ["Compared with", plan.baseline or "nothing"],
            ["Plan, SHA-256", evidence.plan_sha256],
            ["Run", evidence.verification_id],
            ["Finished", evidence.finished_at.strftime("%Y-%m-%d %H:%M UTC")],
            ["Error rate, all suites together", f"{plan.alpha:g} (Holm)"],
            ["Sampling", f"temperature {plan.temperature:g}, seed {plan.seed}"],
            ["LoomOS", evidence.code],
            ["Display score", f"{evidence.overall_score:.3f}; nothing is decided by it"],
        ],
        "tests": [
            {
                "name": test.name,
                "risk": test.risk,
                "verdict": test.verdict,
                "gates": test.gates,
                "reason": test.reason,
                "failures": test.failures,
                "n": test.n,
                "effective_n": round(test.effective_n, 1),
                "claim": test.claim,
                "rate": test.rate,
                "low": test.interval.low,
                "high": test.interval.high,
                "wilson_low": test.wilson.low,
                "wilson_high": test.wilson.high,
                "p_pass": f"{test.p_pass:.2g}",
                "adjusted": f"{test.adjusted_p_pass:.2g}",
                "missing": test.missing,
                "issues": test.issues[:5],
                "suite_sha256": _suite_digest(evidence, test.name),
                "severity": test.severity,
            }
            for test in evidence.tests
        ],
        "controls": [
            {
                "suite": test.name,
                "detector": test.detector,
                "planted": f"{test.planted_found} of {test.planted}",
                "flips": f"{test.flips} of {test.repeats}",
                "card": _card(evidence, test.detector),
            }
            for test in evidence.tests
            if "." not in test.name
        ],
        "standards": [
            {
                "name": STANDARDS[key],
                "clauses": [
                    {
                        "clause": found.clause,
                        "subject": found.subject,
                        "status": found.status,
                        "evidence": found.evidence,
                    }
                    for found in map_evidence(evidence, [key])
                ],
            }
            for key in standards
        ],
        "evidence_sha256": evidence.sha256,
        "date": [evidence.finished_at.year, evidence.finished_at.month, evidence.finished_at.day],
    }


def _suite_digest(evidence: Evidence, test: str) -> str:
    suites = {suite.name: suite.sha256 for suite in evidence.plan.suites}
    return suites.get(test) or suites[test.rpartition(".")[0]]


def _card(evidence: Evidence, detector: str) -> str:
    card = evidence.cards.get(detector)
    if card is None:
        return "not measured"
    return f"finds {card['found']} of {card['cases']}, spares {card['spared']} of {card['others']}"
