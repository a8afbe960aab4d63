"""Who leads a group: at most one at a time, each under a higher term than all before.

The leader's tenure is an activity on its own queue that heartbeats for as long as it leads, so a
steady leader writes no history. When it falls silent, ends or is asked to step down, the next
candidate gets the next term. Temporal keeps the order of terms; what a deposed leader still tries
to write is refused where it is written, by its term.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.leadership import Candidate, ElectionInput, LeadershipStatus, Tenure
    from loomos.jobs.message import Empty

FOR_EVER = timedelta(days=3650)


@workflow.defn(name="Leadership")
class Leadership:
    """The election of one group."""

    @workflow.init
    def __init__(self, election: ElectionInput) -> None:
        self._election = election
        self._candidates = list(election.candidates)
        self._term = election.term
        self._leader: Candidate | None = None
        self._since: datetime | None = None
        self._steps_down = False

    @workflow.run
    async def run(self, election: ElectionInput) -> None:
        """Have somebody lead, for ever."""
        while not workflow.info().is_continue_as_new_suggested():
            await workflow.wait_condition(lambda: bool(self._candidates))
            await self._lead(self._candidates[0])
        await workflow.wait_condition(workflow.all_handlers_finished)
        carried = {"candidates": self._candidates, "term": self._term}
        workflow.continue_as_new(election.model_copy(update=carried))

    async def _lead(self, candidate: Candidate) -> None:
        """One tenure, to its end."""
        self._term += 1
        self._leader, self._since, self._steps_down = candidate, workflow.now(), False
        tenure = workflow.start_activity(
            "lead",
            Tenure(
                group=self._election.group,
                term=self._term,
                node_id=candidate.node_id,
                timeout=self._election.timeout,
            ),
            result_type=Empty,
            task_queue=candidate.task_queue,
            start_to_close_timeout=FOR_EVER,
            schedule_to_start_timeout=self._election.timeout,
            heartbeat_timeout=self._election.timeout,
            retry_policy=RetryPolicy(maximum_attempts=1),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"{candidate.node_id} leads in term {self._term}",
        )
        await workflow.wait_condition(
            lambda: tenure.done() or self._steps_down or candidate not in self._candidates
        )
        if not tenure.done():
            tenure.cancel()
        stepped_down = True
        try:
            await tenure
        except ActivityError as error:
            stepped_down = is_cancelled_exception(error)
        self._leader = self._since = None
        if candidate in self._candidates:
            self._candidates.remove(candidate)
            if stepped_down:  # it may lead again after the others
                self._candidates.append(candidate)

    # --- messages ---

    @workflow.signal
    def stand(self, candidate: Candidate) -> None:
        """A member would lead; an older incarnation of it is gone."""
        if candidate.node_id in self._election.members and candidate not in self._candidates:
            others = [c for c in self._candidates if c.node_id != candidate.node_id]
            self._candidates = [*others, candidate]

    @workflow.signal
    def withdraw(self, candidate: Candidate) -> None:
        """A node would not lead any more."""
        self._candidates = [c for c in self._candidates if c != candidate]

    @workflow.update
    async def trigger_election(self) -> LeadershipStatus:
        """Have the leader step down; answers when another leads."""
        term = self._term
        self._steps_down = True
        await workflow.wait_condition(lambda: self._term > term)
        return self.status()

    @trigger_election.validator
    def _somebody_leads(self) -> None:
        if self._leader is None:
            raise ApplicationError(
                "nobody leads now; an election is under way", type="Conflict", non_retryable=True
            )

    @workflow.query
    def status(self) -> LeadershipStatus:
        """Who leads, and who else would."""
        return LeadershipStatus(
            group=self._election.group,
            term=self._term,
            leader=self._leader.node_id if self._leader else None,
            since=self._since,
            candidates=list(self._candidates),
        )
