"""Side effects of a verification on the control worker: plans, scores, verdicts, reports."""

from __future__ import annotations

from collections.abc import Callable

from temporalio import activity

from activities.failures import in_thread
from loomos.jobs.verification import JudgeRequest, PlanRef, PlanRequest, VerificationResult
from loomos.local_files import Reach
from loomos.prism.judging import Evidence, details, judge_plan, record
from loomos.prism.plan import make_plan, read_plan, store_plan
from loomos.prism.reports.compliance import STANDARDS
from loomos.prism.reports.files import EVAL_FOLDER, HTML_REPORT, PDF_REPORT
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import verification_prefix


class VerificationActivities:
    """Activities of the control worker."""

    def __init__(self, settings: Settings) -> None:
        self._store = open_store(settings.storage)
        self._reach = Reach.of(settings)

    @activity.defn
    async def plan_verification(self, request: PlanRequest) -> PlanRef:
        """Pin model and suites, fix the plan, and store it under its hash.

        Raises:
            NotFound: there is no such version.
            InvalidInput: a suite is missing or malformed.
        """
        store = self._store
        return await in_thread(
            lambda say: store_plan(
                store, make_plan(store, request.model, request.spec, self._reach)
            )
        )

    @activity.defn
    async def judge_verification(self, request: JudgeRequest) -> VerificationResult:
        """Score, decide, write evidence, reports and logs; file the verdict under the version.

        Raises:
            NotFound: a shard was not generated.
        """
        store = self._store

        def work(say: Callable[[str], None]) -> VerificationResult:
            plan = read_plan(store, request.plan_sha256)
            evidence = judge_plan(store, plan, request.verification_id, say)
            say("writing reports")
            _write_reports(store, evidence)
            return record(store, evidence)

        return await in_thread(work)


def _write_reports(store: Store, evidence: Evidence) -> None:
    """Every report; made again they are the same."""
    from loomos.prism.reports.documents import render_html, render_pdf
    from loomos.prism.reports.eval_log import encode_eval_logs

    prefix = verification_prefix(evidence.plan_sha256)
    standards = list(STANDARDS)
    store.put(prefix + HTML_REPORT, render_html(evidence, standards).encode())
    store.put(prefix + PDF_REPORT, render_pdf(evidence, standards))
    for name, log in encode_eval_logs(evidence, details(store, evidence)).items():
        store.put(f"{prefix}{EVAL_FOLDER}{name}", log)
