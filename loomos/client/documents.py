"""Workflows that a document starts, each once, and how they are found again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import (
    Priority,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from loomos.client.answers import answered
from loomos.errors import Conflict, NotFound, Unavailable
from loomos.jobs.message import Message
from loomos.jobs.names import CONTROL_QUEUE, label_list
from loomos.manifest import Document, Metadata
from loomos.search_attributes import KIND, LABELS, NAME, OWNER, PRIORITY, PROJECT, STATE

DOCUMENT_MEMO = "document_sha256"
UNANSWERED = (NotFound, WorkflowQueryFailedError, WorkflowQueryRejectedError, ValidationError)
"""What comes instead of an answer; the last is the answer of another kind of workflow."""
ENDS = {
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.TERMINATED: "failed",
    WorkflowExecutionStatus.TIMED_OUT: "failed",
}
"""How a workflow ended, also where it could not say so itself."""


AnswerT = TypeVar("AnswerT", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class DocumentKind:
    """A kind of document, and the workflow that carries it."""

    kind: str
    """As search attributes and documents have it."""
    workflow: str
    """Type of the workflow."""
    noun: str
    """For people; `loomos NOUNs list` shows them."""


class DocumentWorkflows:
    """Starts and finds the workflows of one kind of document."""

    def __init__(self, client: Client, kind: DocumentKind) -> None:
        self._client, self._kind = client, kind

    async def start(
        self,
        workflow_id: str,
        run: Message,
        document: Document,
        metadata: Metadata,
        *,
        owner: str,
        state: str,
        priority: int,
        summary: str,
    ) -> None:
        """Start a workflow; the same id and document do nothing the second time.

        Raises:
            Conflict: the id is that of another document.
        """
        digest = hashlib.sha256(document.model_dump_json().encode()).hexdigest()
        try:
            await answered(
                self._client.start_workflow(
                    self._kind.workflow,
                    run,
                    id=workflow_id,
                    task_queue=CONTROL_QUEUE,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                    task_timeout=timedelta(seconds=10),
                    memo={DOCUMENT_MEMO: digest},
                    priority=Priority(priority_key=priority, fairness_key=metadata.project),
                    static_summary=summary,
                    search_attributes=TypedSearchAttributes(
                        [
                            SearchAttributePair(KIND, self._kind.kind),
                            SearchAttributePair(NAME, metadata.name),
                            SearchAttributePair(OWNER, owner),
                            SearchAttributePair(PROJECT, metadata.project),
                            SearchAttributePair(STATE, state),
                            SearchAttributePair(PRIORITY, priority),
                            SearchAttributePair(LABELS, label_list(metadata.labels)),
                        ]
                    ),
                )
            )
        except WorkflowAlreadyStartedError:
            described = await answered(self.handle(workflow_id).describe())
            if await described.memo_value(DOCUMENT_MEMO, None) != digest:
                raise Conflict(
                    f"this idempotency key was used for another {self._kind.noun} "
                    f"({workflow_id}); use a new key"
                ) from None

    async def query(
        self, workflow_id: str, name: str, answer: type[AnswerT], *arguments: Message
    ) -> AnswerT:
        """Ask a workflow.

        Raises:
            NotFound: there is none of this kind.
            Conflict: it was terminated from outside.
            Unavailable: it does not answer.
        """
        try:
            found: AnswerT = await answered(
                self.handle(workflow_id).query(name, args=arguments, result_type=answer)
            )
            return found
        except UNANSWERED as error:
            raise await self._unanswered(workflow_id, error) from None

    async def newest(self, limit: int) -> list[WorkflowExecution]:
        """The newest, newest first, by one visibility call."""
        query = f'{KIND.name} = "{self._kind.kind}" AND ExecutionStatus != "ContinuedAsNew"'
        found: dict[str, WorkflowExecution] = {}
        async for execution in self._client.list_workflows(query, limit=limit):
            found.setdefault(execution.id, execution)
        return list(found.values())

    def handle(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        """Of a workflow that may be there or not."""
        return self._client.get_workflow_handle(workflow_id)

    async def _unanswered(self, workflow_id: str, error: Exception) -> Exception:
        """What to say when the workflow's own answer did not come."""
        noun = self._kind.noun
        missing = NotFound(f"no {noun} {workflow_id!r}; `loomos {noun}s list` shows them")
        if isinstance(error, NotFound):
            return missing
        described = await answered(self.handle(workflow_id).describe())
        if described.workflow_type != self._kind.workflow:
            return missing
        if described.status == WorkflowExecutionStatus.TERMINATED:
            return Conflict(f"the {noun} {workflow_id} was terminated in Temporal")
        return Unavailable(f"{workflow_id} does not answer: {error}")


def summary_fields(execution: WorkflowExecution, first_state: str) -> dict[str, Any]:
    """What every list shows of a workflow: name, owner, state, when it began and ended."""
    attributes = execution.typed_search_attributes
    state = ENDS.get(execution.status) if execution.status is not None else None
    return {
        "name": attributes.get(NAME) or execution.id,
        "owner": attributes.get(OWNER) or "",
        "state": state or attributes.get(STATE) or first_state,
        "started_at": execution.start_time,
        "finished_at": execution.close_time,
    }
