"""Workflows of one kind: found, looked at, steered, ended and forgotten, also those that are stuck.

A workflow may be unable to say anything: its worker is away, or it fails at every step (its input
cannot be read, or its code is at fault). What Temporal itself knows is told all the same, with the
reason why that is not everything; and what cannot cancel itself is terminated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.api.common.v1 import WorkflowExecution as ExecutionId
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
)

from loomos.client.answers import ANSWER_TIMEOUT_S, answered
from loomos.errors import Conflict, InvalidInput, NotFound, Stuck, Unavailable
from loomos.jobs.message import Message
from loomos.search_attributes import NAME, OWNER, PROJECT, STATE, quoted

LOOK_PATIENCE_S = 5.0
"""How long a workflow may take to say where it is, before Temporal is asked about it."""
CANCEL_PATIENCE_S = 8.0
"""How long whoever cancels waits for what comes of it."""
WATCH_S = 120.0
"""How long a workflow that is cancelled is watched: a busy worker may take so long to fail."""
HOPELESS = 3
"""Failures of one workflow task in a row after which it is not expected to succeed. One or two
happen to healthy workflows: see `workers.early_queries`."""
ENDS = {
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.TERMINATED: "failed",
    WorkflowExecutionStatus.TIMED_OUT: "failed",
}
"""How a workflow ended, also where it could not say so itself."""

_WATCHES: set[asyncio.Task[bool]] = set()
"""Held here, for the loop itself holds tasks weakly."""

AnswerT = TypeVar("AnswerT", bound=BaseModel)
InputT = TypeVar("InputT", bound=Message)
StateT = TypeVar("StateT", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """A kind of thing that a workflow carries."""

    kind: str
    """As search attributes and documents have it."""
    workflow: str
    """Type of the workflow."""
    noun: str
    """For people."""
    command: str
    """What lists them: `loomos COMMAND list`."""


class Seen(NamedTuple, Generic[AnswerT]):
    """What came of asking a workflow where it is."""

    answer: AnswerT | None
    """Its own words."""
    reason: str
    """Why there are none; empty if there are."""
    execution: WorkflowExecutionDescription
    """What Temporal knows of it."""

    @property
    def ended(self) -> str:
        """How it ended; empty while it runs."""
        return ENDS.get(self.execution.status, "") if self.execution.status else ""


class Runs:
    """The workflows of one kind."""

    def __init__(self, client: Client, kind: RunKind) -> None:
        self._client, self.kind = client, kind

    def handle(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        """Of a workflow that may be there or not."""
        return self._client.get_workflow_handle(workflow_id)

    def missing(self, workflow_id: str) -> NotFound:
        """What to raise where there is none of this id."""
        return NotFound(
            f"no {self.kind.noun} {workflow_id!r}; `loomos {self.kind.command} list` shows them"
        )

    async def described(self, workflow_id: str) -> WorkflowExecutionDescription:
        """What Temporal knows of a workflow.

        Raises:
            NotFound: there is none, or it is of another kind.
        """
        try:
            found = await answered(self.handle(workflow_id).describe())
        except (NotFound, InvalidInput):  # the latter: the id is longer than any
            raise self.missing(workflow_id) from None
        if found.workflow_type != self.kind.workflow:
            raise self.missing(workflow_id)
        return found

    async def look(
        self,
        workflow_id: str,
        answer: type[AnswerT],
        *arguments: Message,
        query: str = "status",
        is_final: Callable[[AnswerT], bool] = lambda _: True,
    ) -> Seen[AnswerT]:
        """Ask a workflow where it is; if it does not answer, that is not an error.

        Args:
            workflow_id: which.
            answer: class of the answer.
            arguments: of the query.
            query: its name.
            is_final: whether an answer is that of a workflow that has ended.

        Raises:
            NotFound: there is none of this kind.
        """
        execution, (found, reason) = await asyncio.gather(
            self.described(workflow_id), self._ask(workflow_id, answer, query, arguments)
        )
        if found is not None and execution.status != WorkflowExecutionStatus.RUNNING:
            if not is_final(found):  # it may have ended between the two questions
                found, reason = await self._ask(workflow_id, answer, query, arguments)
        elif found is not None and is_final(found):
            execution = await self.described(workflow_id)
        return Seen(found, reason, execution)

    async def _ask(
        self, workflow_id: str, answer: type[AnswerT], query: str, arguments: tuple[Message, ...]
    ) -> tuple[AnswerT | None, str]:
        handle = self.handle(workflow_id)

        async def ask() -> AnswerT:
            found: AnswerT = await answered(
                handle.query(query, args=arguments, result_type=answer), LOOK_PATIENCE_S
            )
            return found

        try:
            try:
                found = await ask()
            except Stuck:  # for a moment, healthy workflows are so too: see `HOPELESS`
                await asyncio.sleep(0.2)
                found = await ask()
        except (Unavailable, Stuck, NotFound) as error:
            return None, str(error)
        except (ValidationError, ValueError) as error:  # the answer of another LoomOS
            return None, f"its workflow's answer cannot be read: {str(error).splitlines()[0]}"
        return found, ""

    async def first_input(self, workflow_id: str, model: type[InputT]) -> InputT | None:
        """What a workflow was started with; None if that cannot be read."""
        try:
            decoded = await self._client.data_converter.decode(
                await self._first_payloads(workflow_id), [model]
            )
        except Exception:  # whatever a decoder makes of bytes from anywhere
            return None
        return decoded[0] if decoded and isinstance(decoded[0], model) else None

    async def raw_input(self, workflow_id: str) -> dict[str, Any]:
        """What a workflow was started with, unchecked; empty unless it is a JSON object."""
        payloads = await self._first_payloads(workflow_id)
        try:
            found = json.loads(payloads[0].data) if payloads else None
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    async def _first_payloads(self, workflow_id: str) -> list[Any]:
        async for event in self.handle(workflow_id).fetch_history_events(page_size=1):
            return list(event.workflow_execution_started_event_attributes.input.payloads)
        return []

    async def update(
        self,
        workflow_id: str,
        name: str,
        *arguments: Message,
        result: type[AnswerT],
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> AnswerT:
        """Steer a workflow.

        Raises:
            NotFound: it has ended.
            Conflict: it refuses.
            Stuck: it fails at every step.
            Unavailable: it does not answer.
        """
        await self.refuse_stuck(workflow_id)
        try:
            return await answered(
                self.handle(workflow_id).execute_update(name, args=arguments, result_type=result),
                timeout_s,
            )
        except Unavailable:
            await self.refuse_stuck(workflow_id)
            raise

    async def refuse_stuck(self, workflow_id: str) -> None:
        """Raise `Stuck` if a workflow fails at every step."""
        if await self._failures(workflow_id) >= HOPELESS:
            raise Stuck(
                f"the {self.kind.noun} {workflow_id} fails at every step that it tries, so it "
                "cannot be steered; cancel it"
            )

    async def _failures(self, workflow_id: str) -> int:
        """How often in a row the workflow's code has failed at the same task."""
        with contextlib.suppress(NotFound):
            described = await answered(self.handle(workflow_id).describe())
            attempt = described.raw_description.pending_workflow_task.attempt
            if attempt > 1 and await self._says_failed(workflow_id):
                return attempt
        return 0

    async def _says_failed(self, workflow_id: str) -> bool:
        """Whether Temporal refuses to query it because of its failed task.

        Attempts alone do not tell: they count tasks that a frozen worker let time out too.
        """
        try:
            await answered(self.handle(workflow_id).query("status"), 1.0)
        except Stuck:
            return True
        except Exception:
            return False
        return False

    async def end(self, workflow_id: str, person: str = "") -> bool:
        """Cancel a workflow; terminate it if it fails at every step and so cannot cancel itself.

        That may take longer to show than a caller waits; it is watched on for `WATCH_S`, and
        cancelling it again later looks again.

        Returns:
            Whether it has been terminated.
        """
        with contextlib.suppress(NotFound):
            await answered(self.handle(workflow_id).cancel())
        watch = asyncio.create_task(self._end_hopeless(workflow_id, person))
        _WATCHES.add(watch)
        watch.add_done_callback(_WATCHES.discard)
        await asyncio.wait([watch], timeout=CANCEL_PATIENCE_S)
        return watch.result() if watch.done() else False

    async def _end_hopeless(self, workflow_id: str, person: str) -> bool:
        """Watch a workflow until it has heard that it is cancelled; terminate it if it cannot."""
        handle = self.handle(workflow_id)
        deadline = asyncio.get_running_loop().time() + WATCH_S
        with contextlib.suppress(NotFound, Unavailable):
            while asyncio.get_running_loop().time() < deadline:
                described = await answered(handle.describe())
                attempt = described.raw_description.pending_workflow_task.attempt
                if described.status != WorkflowExecutionStatus.RUNNING or not attempt:
                    return False  # it has ended, or it has heard
                if attempt >= HOPELESS and await self._says_failed(workflow_id):
                    by = f" by {person}" if person else ""
                    reason = f"cancelled{by}; it fails at every step"
                    await answered(handle.terminate(reason=reason))
                    return True
                await asyncio.sleep(0.5)
        return False

    async def forget(self, workflow_id: str) -> None:
        """Delete the record of a workflow that has ended: every run that it had.

        Raises:
            NotFound: there is none.
            Conflict: it runs.
        """
        description = await self.described(workflow_id)
        if description.status == WorkflowExecutionStatus.RUNNING:
            raise Conflict(f"{self.kind.noun} {workflow_id} runs; cancel it first")
        await self.erase(workflow_id)

    async def erase(self, workflow_id: str) -> None:
        """Delete every record of a workflow.

        Temporal deletes in the background; for a moment it can still be seen.
        """
        runs: set[str] = set()
        with contextlib.suppress(NotFound):
            runs.add((await answered(self.handle(workflow_id).describe())).run_id)
        async for run in self._client.list_workflows(f"WorkflowId = {quoted(workflow_id)}"):
            runs.add(run.run_id)
        for run_id in sorted(runs):
            with contextlib.suppress(NotFound):
                await answered(
                    self._client.workflow_service.delete_workflow_execution(
                        DeleteWorkflowExecutionRequest(
                            namespace=self._client.namespace,
                            workflow_execution=ExecutionId(workflow_id=workflow_id, run_id=run_id),
                        )
                    )
                )


def known_facts(execution: WorkflowExecution) -> dict[str, Any]:
    """Name, owner and project of a workflow, as far as they were written down."""
    attributes = execution.typed_search_attributes
    return {
        "name": attributes.get(NAME) or execution.id,
        "owner": attributes.get(OWNER) or "",
        "project": attributes.get(PROJECT) or "",
    }


def known_state(execution: WorkflowExecution, states: type[StateT], first: StateT) -> StateT:
    """Where a workflow is, by what Temporal knows; `first` where that is no state."""
    ended = ENDS.get(execution.status) if execution.status is not None else None
    for text in (ended, execution.typed_search_attributes.get(STATE)):
        if text is not None:
            with contextlib.suppress(ValueError):
                return states(text)
    return first
