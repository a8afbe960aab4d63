"""From the answers of a plan to its evidence: scored, judged, and written down once.

Scores are filed by answers and detector, so that a changed detector never generates again. The
evidence is one JSON document; every report is made of it and of nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from loomos.errors import LoomOSError, NotFound
from loomos.jobs.verification import Shard, SuiteSummary, Verdict, VerificationResult
from loomos.prism.answers import Answer, contexts, read_answers, shard_answers_key
from loomos.prism.detectors import Card, card_of, find_all, find_detector
from loomos.prism.evidence import RecordedVerdict, record_verdict
from loomos.prism.plan import read_suite
from loomos.prism.planned import Plan, PlannedSuite
from loomos.prism.suites import Prompt
from loomos.prism.verdicts import Observed, TestResult, Unit, judge
from loomos.storage import Store
from loomos.storage.layout import verification_prefix

LOCAL_PREFIX = "local-"
"""Begins the id of a run that was made outside a cluster."""


class Evidence(BaseModel):
    """All that a verification found: what every report is made of."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    format: int = 1
    """Of this document."""
    verification_id: str
    """The run."""
    plan_sha256: str
    """Digest of the plan, taken before the first generation."""
    plan: Plan
    """The plan."""
    verdict: Verdict
    """Over all suites that gate."""
    overall_score: float
    """Mean share of units that did not fail. To look at; nothing is decided by it."""
    tests: list[TestResult]
    """Every test."""
    cards: dict[str, dict[str, int]]
    """Errors of the detectors, as counted."""
    code: str
    """Version of LoomOS."""
    finished_at: datetime
    """When."""

    def encode(self) -> bytes:
        """As it is stored and hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode()

    @property
    def sha256(self) -> str:
        """Its digest."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def is_local(self) -> bool:
        """Whether no ledger knows of it."""
        return self.verification_id.startswith(LOCAL_PREFIX)


def evidence_key(plan_sha256: str) -> str:
    """Where a plan's evidence is."""
    return f"{verification_prefix(plan_sha256)}evidence.json"


def judge_plan(
    store: Store, plan: Plan, verification_id: str, progress: Callable[[str], None]
) -> Evidence:
    """Score every answer and decide; the same plan judged again finds what was decided.

    Raises:
        NotFound: a shard was not generated.
        Unavailable: a judge does not answer now; nothing is filed.
    """
    from importlib.metadata import version

    try:
        return Evidence.model_validate_json(store.get(evidence_key(plan.sha256)))
    except NotFound:
        pass
    observed: list[Observed] = []
    for suite in plan.suites:
        progress(f"scoring {suite.name}")
        observed.append(_observe(store, plan, suite))
    verdict, tests = judge(plan, observed)
    rates = [t.rate for t in tests if t.gates and "." not in t.name]
    cards = {
        suite.header.detector: card._asdict()
        for suite in plan.suites
        if (card := card_of(suite.header.detector)) is not None
    }
    evidence = Evidence(
        verification_id=verification_id,
        plan_sha256=plan.sha256,
        plan=plan,
        verdict=verdict,
        overall_score=1 - sum(rates) / len(rates) if rates else 0.0,
        tests=tests,
        cards=cards,
        code=version("loomos"),
        finished_at=datetime.now(UTC).replace(microsecond=0),
    )
    store.put_if_absent(evidence_key(plan.sha256), evidence.encode())
    return Evidence.model_validate_json(store.get(evidence_key(plan.sha256)))


def _observe(store: Store, plan: Plan, suite: PlannedSuite) -> Observed:
    prompts = {prompt.id: prompt for prompt in read_suite(store, suite).prompts}
    card: Card | None = card_of(suite.header.detector)

    def units(role: str) -> list[Unit]:
        return score(store, suite, plan.shards_of(suite.name, role), prompts)

    try:
        planted = [(item.answer, item.context) for item in suite.header.planted]
        found = find_all(find_detector(suite.header.detector), planted)
        candidate = units("candidate")
        return Observed(
            suite=suite,
            card=card,
            units=candidate,
            baseline=units("baseline"),
            repeats=units("repeat"),
            slow=_slow(store, plan, suite),
            planted_found=sum(1 for item in found if item),
            planted=len(planted),
        )
    except LoomOSError as error:
        # What may be there later is no finding: to file it would make the outage last for ever.
        if error.retryable or isinstance(error, NotFound):
            raise
        return Observed(suite=suite, card=card, units=[], error=str(error))


def score(
    store: Store, suite: PlannedSuite, shards: Sequence[Shard], prompts: dict[str, Prompt]
) -> list[Unit]:
    """Units of some shards, decided by the suite's detector; what was decided before is read."""
    if not shards:
        return []
    detector = find_detector(suite.header.detector)
    found: list[Unit] = []
    for shard in shards:
        answers = read_answers(store, [shard])
        digest = hashlib.sha256(store.get(shard_answers_key(shard.key))).hexdigest()
        key = hashlib.sha256(
            f"{digest}/{suite.sha256}/{suite.detector_sha256}".encode()
        ).hexdigest()
        where = f"verifications/scores/{key}.json"
        try:
            decided: list[bool | None] = json.loads(store.get(where))
        except NotFound:
            items = [
                (answer.answer, context)
                for answer, context in zip(answers, contexts(answers, prompts), strict=True)
            ]
            decided = find_all(detector, items)
            store.put(where, json.dumps(decided).encode())
        found += [
            Unit(id=f"{a.id}#{a.generation}", cluster=a.cluster, failed=failed)
            for a, failed in zip(answers, decided, strict=True)
        ]
    return found


def _slow(store: Store, plan: Plan, suite: PlannedSuite) -> list[Unit]:
    limit = suite.seconds_per_token
    if limit is None:
        return []
    answers: list[Answer] = read_answers(store, plan.shards_of(suite.name, "candidate"))
    return [
        Unit(id=f"{a.id}#{a.generation}", cluster=a.cluster, failed=a.latency_s > limit * a.tokens)
        for a in answers
        if a.tokens
    ]


def record(store: Store, evidence: Evidence) -> VerificationResult:
    """File the verdict under the version; the same evidence twice is there once."""
    plan = evidence.plan
    record_verdict(
        store,
        RecordedVerdict(
            version=plan.version,
            weights_sha256=plan.weights_sha256,
            verdict=evidence.verdict,
            verification_id=evidence.verification_id,
            plan_sha256=evidence.plan_sha256,
            evidence_sha256=evidence.sha256,
            evidence_key=evidence_key(evidence.plan_sha256),
            at=evidence.finished_at,
        ),
    )
    return VerificationResult(
        verification_id=evidence.verification_id,
        version=plan.version,
        verdict=evidence.verdict,
        suites=[
            SuiteSummary(
                suite=test.name,
                verdict=test.verdict,
                failures=test.failures,
                n=test.n,
                reason=test.reason,
            )
            for test in evidence.tests
        ],
        evidence_sha256=evidence.sha256,
        plan_sha256=evidence.plan_sha256,
        finished_at=evidence.finished_at,
    )


def details(store: Store, evidence: Evidence) -> dict[str, list[tuple[Answer, Unit]]]:
    """Every answer of the candidate with its score, by suite: what logs are made of."""
    found: dict[str, list[tuple[Answer, Unit]]] = {}
    for suite in evidence.plan.suites:
        shards = evidence.plan.shards_of(suite.name, "candidate")
        prompts: dict[str, Any] = {p.id: p for p in read_suite(store, suite).prompts}
        answers = read_answers(store, shards)
        units = score(store, suite, shards, prompts)
        found[suite.name] = list(zip(answers, units, strict=True))
    return found
