"""What workflows share that live long and are no jobs: their length, and facts for the ledger."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from loomos.jobs.facts import Fact, RecordFacts
    from workflows import calls

MOST_EVENTS = 4000
"""A run whose history is longer hands over to a new one as soon as it can."""


def is_long() -> bool:
    """Whether this run should hand over to a new one."""
    info = workflow.info()
    return info.is_continue_as_new_suggested() or info.get_current_history_length() > MOST_EVENTS


async def record(
    kind: str, workflow_id: str, event_type: str, data: dict[str, object], person: str | None = None
) -> None:
    """Let the ledger know, and wait until it does; a chain of runs records each type once.

    Args:
        kind: the stream is `KIND:WORKFLOW_ID`.
        workflow_id: whose fact it is.
        event_type: what happened.
        data: what is known of it; nothing personal.
        person: who did it, if a person did.
    """
    run = workflow.info().first_execution_run_id
    fact = Fact(event_type=event_type, key=f"{run}/{event_type}", data=data, person=person)
    await calls.start_record(
        RecordFacts(job_id=workflow_id, stream=f"{kind}:{workflow_id}", facts=[fact])
    )
