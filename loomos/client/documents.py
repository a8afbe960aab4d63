"""Workflows that a document starts, each once, and how they are found again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
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
from loomos.client.keys import Keys, document_digest
from loomos.client.listing import newest_first
from loomos.client.runs import RunKind, Runs, known_facts
from loomos.errors import Conflict, LoomOSError, NotFound
from loomos.jobs.message import Message
from loomos.jobs.names import CONTROL_QUEUE, label_list
from loomos.manifest import Document, Metadata
from loomos.search_attributes import KIND, LABELS, NAME, OWNER, PRIORITY, PROJECT, STATE, quoted
from loomos.storage import Store
from loomos.storage.layout import job_prefix

DOCUMENT_MEMO = "document_sha256"
KEY_MEMO = "idempotency_key"
"""Memo: name of the key that started a run, as `loomos.client.keys` has it."""


InputT = TypeVar("InputT", bound=Message)


class DocumentWorkflows(Runs):
    """The workflows of one kind of document, each started once.

    Args:
        client: Temporal.
        kind: which kind.
        store: where idempotency keys and what runs have written are.
    """

    def __init__(self, client: Client, kind: RunKind, store: Store) -> None:
        super().__init__(client, kind)
        self._store = store
        self.keys = Keys(store, kind.kind)

    async def start(
        self,
        make_run: Callable[[str], InputT],
        document: Document,
        metadata: Metadata,
        *,
        owner: str,
        key: str | None,
        state: str,
        priority: int,
        summary: str,
        task_timeout: timedelta = timedelta(seconds=10),
        admit: Callable[[InputT], Awaitable[None]] | None = None,
    ) -> tuple[str, bool]:
        """Start a workflow; the same key and document start it once.

        Args:
            make_run: makes the workflow's input of its id.
            document: what a person wrote.
            metadata: of the document.
            owner: who starts it.
            key: idempotency key.
            state: its first.
            priority: 1 to 5.
            summary: for Temporal's UI.
            task_timeout: of its workflow tasks.
            admit: refuses by raising what is known to come to nothing; not asked about what was
                started before.

        Returns:
            The workflow's id, and whether it was started now.

        Raises:
            Conflict: the key was used for another document.
        """
        digest = document_digest(document)
        use = await self.keys.take(owner, key, metadata.name, digest)
        key_name = self.keys.name(owner, key) if key is not None else ""
        if key is not None and not await self.exists(use.run_id):
            use = await self.keys.retake(owner, key, metadata.name, use)
        elif key is not None:
            await self._check_key(use.run_id, key_name)
            return use.run_id, False
        run = make_run(use.run_id)
        try:
            if admit is not None:
                await admit(run)
            await self.start_run(
                use.run_id,
                run,
                metadata.name,
                metadata.project,
                metadata.labels,
                owner=owner,
                state=state,
                priority=priority,
                summary=summary,
                memo={DOCUMENT_MEMO: digest, KEY_MEMO: key_name},
                task_timeout=task_timeout,
            )
        except WorkflowAlreadyStartedError:
            await self._check_key(use.run_id, key_name)
            return use.run_id, False
        except LoomOSError as error:
            if key_name and not error.retryable:  # refused; mended, it may come with the same key
                await self.keys.free(key_name, use.run_id)
            raise
        return use.run_id, True

    async def start_run(
        self,
        workflow_id: str,
        run: Message,
        name: str,
        project: str,
        labels: dict[str, str],
        *,
        owner: str,
        state: str,
        priority: int,
        summary: str,
        memo: dict[str, str],
        task_timeout: timedelta = timedelta(seconds=10),
        reuse: WorkflowIDReusePolicy = WorkflowIDReusePolicy.REJECT_DUPLICATE,
    ) -> None:
        """Start the workflow of an id."""
        await answered(
            self._client.start_workflow(
                self.kind.workflow,
                run,
                id=workflow_id,
                task_queue=CONTROL_QUEUE,
                id_reuse_policy=reuse,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                task_timeout=task_timeout,
                memo=memo,
                priority=Priority(priority_key=priority, fairness_key=project),
                static_summary=summary,
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(KIND, self.kind.kind),
                        SearchAttributePair(NAME, name),
                        SearchAttributePair(OWNER, owner),
                        SearchAttributePair(PROJECT, project),
                        SearchAttributePair(STATE, state),
                        SearchAttributePair(PRIORITY, priority),
                        SearchAttributePair(LABELS, label_list(labels)),
                    ]
                ),
            )
        )

    async def exists(self, workflow_id: str) -> bool:
        """Whether there is one of this id."""
        try:
            await self.described(workflow_id)
        except NotFound:
            return False
        return True

    async def _check_key(self, workflow_id: str, key_name: str) -> None:
        """Refuse what is there under this id, unless this very key started it."""
        described = await self.described(workflow_id)
        if not key_name or await self.memo(described, KEY_MEMO) != key_name:
            raise Conflict(
                f"the id {workflow_id} is taken by another {self.kind.noun}; use a new key"
            )

    async def delete(self, workflow_id: str, prefixes: Sequence[str]) -> None:
        """Delete what a run that has ended wrote, then its key, then its record.

        Whatever is interrupted, doing it again finishes it; what was left of a run that Temporal
        knows no more is deleted too. The runs that it started go with it.

        Args:
            workflow_id: which.
            prefixes: where in the store its things are.

        Raises:
            NotFound: there is no such run, nor anything left of one.
            Conflict: it runs.
        """
        try:
            described = await self.described(workflow_id)
        except NotFound as error:
            if not await self._delete_below(prefixes):
                raise error from None
            return
        if described.status == WorkflowExecutionStatus.RUNNING:
            raise Conflict(f"{self.kind.noun} {workflow_id} runs; cancel it first")
        for child in await self._jobs_of(workflow_id):
            await self._delete_below([job_prefix(child)])
            await self.erase(child)
        await self._delete_below(prefixes)
        if key_name := await self.memo(described, KEY_MEMO):
            await self.keys.free(key_name, workflow_id)
        await self.erase(workflow_id)

    async def _jobs_of(self, workflow_id: str) -> list[str]:
        """Jobs that a run started and that have ended."""
        query = f'ParentWorkflowId = {quoted(workflow_id)} AND WorkflowType = "TrainingRun"'
        return sorted(
            {
                child.id
                async for child in self._client.list_workflows(query)
                if child.status != WorkflowExecutionStatus.RUNNING
            }
        )

    async def _delete_below(self, prefixes: Sequence[str]) -> int:
        """Delete every object whose key begins so; how many there were."""

        def delete() -> int:
            number = 0
            for prefix in prefixes:
                keys = (item.key for item in self._store.objects(prefix))
                while batch := list(itertools.islice(keys, 1000)):
                    self._store.delete(batch)
                    number += len(batch)
            return number

        return await asyncio.to_thread(delete)

    async def memo(self, described: WorkflowExecutionDescription, name: str) -> str:
        """A text that was noted when the run was started; empty if there is none to be read."""
        try:
            return str(await described.memo_value(name, ""))
        except Exception:  # whatever a decoder makes of bytes from anywhere
            return ""

    async def newest(self, limit: int) -> list[WorkflowExecution]:
        """The newest, newest first, each once."""
        query = f'WorkflowType = "{self.kind.workflow}"'
        return (await newest_first(self._client, query, limit)).executions


def summary_fields(execution: WorkflowExecution) -> dict[str, Any]:
    """What every list shows of a workflow besides its state: name, owner, when it was."""
    facts = known_facts(execution)
    return {
        "name": facts["name"],
        "owner": facts["owner"],
        "started_at": execution.start_time,
        "finished_at": execution.close_time,
    }


async def read_memo(execution: WorkflowExecution, name: str) -> dict[str, Any]:
    """Facts that a workflow noted for lists; none if they cannot be read."""
    try:
        found = await execution.memo_value(name, {})
    except Exception:  # whatever a decoder makes of bytes from anywhere
        return {}
    return found if isinstance(found, dict) else {}
