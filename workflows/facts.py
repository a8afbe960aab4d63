"""Facts of one run on their way to the ledger.

They are recorded beside the work: a ledger that is away for an hour stops no GPU. A run ends only
when everything is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.cluster import Lease
    from loomos.jobs.facts import Fact, RecordCheckpoints, RecordFacts, submitted_facts
    from loomos.jobs.states import JobState
    from loomos.jobs.training import ResolvedInputs, TrainingRunInput
    from workflows import calls


class FactBook:
    """What a run has told the ledger, and what is not yet acknowledged."""

    def __init__(self, job: TrainingRunInput) -> None:
        self._job = job
        self._pending: list[workflow.ActivityHandle[Any]] = []

    def submitted(self) -> None:
        """The job was asked for."""
        data = submitted_facts(self._job)
        self._record("job_submitted", "submitted", data, person=self._job.owner)

    def resolved(self, inputs: ResolvedInputs) -> None:
        """Data, model and code were pinned."""
        self._record("inputs_resolved", "resolved", {"inputs": inputs.model_dump(mode="json")})

    def leased(self, lease: Lease, generation: int, from_step: int) -> None:
        """Nodes were given for a generation."""
        nodes = [
            {
                "code_sha256": node.code_sha256,
                "environment_sha256": node.environment_sha256,
                "incarnation": node.incarnation,
                "node_id": node.node_id,
            }
            for node in lease.nodes
        ]
        data = {
            "epoch": lease.epoch,
            "from_step": from_step,
            "generation": generation,
            "nodes": nodes,
            "ranks_per_node": lease.ranks_per_node,
        }
        self._record("lease_granted", f"lease/g{generation}", data)

    def recovered(self, reason: str, generation: int) -> None:
        """An attempt broke; another one follows."""
        data = {"generation": generation, "reason": reason[:500]}
        self._record("run_recovered", f"recovered/g{generation}", data)

    def ended(self, state: JobState, message: str) -> None:
        """The run is over."""
        self._record("job_ended", "ended", {"message": message[:500], "state": state})

    def checkpoints(self) -> None:
        """There may be new checkpoints."""
        self._keep(calls.start_record_checkpoints(RecordCheckpoints(job_id=self._job.job_id)))

    async def settle(self) -> None:
        """Wait until all is recorded; a cancellation meanwhile disturbs no recording.

        Raises:
            ActivityError: something cannot be recorded; it is not waited for again.
        """
        while self._pending:
            try:
                await asyncio.shield(self._pending[0])
            except ActivityError:
                del self._pending[0]
                raise
            del self._pending[0]

    def _record(
        self, event_type: str, key: str, data: Mapping[str, Any], person: str | None = None
    ) -> None:
        # A chain of continued runs is one run; a job that is run again is another.
        run = workflow.info().first_execution_run_id
        fact = Fact(event_type=event_type, key=f"{run}/{key}", data=dict(data), person=person)
        self._keep(calls.start_record(RecordFacts(job_id=self._job.job_id, facts=[fact])))

    def _keep(self, handle: workflow.ActivityHandle[Any]) -> None:
        self._pending = [h for h in self._pending if not h.done()]
        self._pending.append(handle)
