"""A query that comes early must not spoil a workflow.

A query that waits while its worker is killed goes to the next worker with the whole history, which
may by then hold events that no workflow task has processed. temporalio 1.35 applies those events,
answers, and keeps the workflow so in its cache; the workflow task that comes next then adds to a
state that no replay arrives at. From its next replay on the workflow fails every task and is stuck
for good. (Seen after `kill -9` of a control worker: "BadCancelTimerAttributes", then TMPRL1100.)

So a workflow that has answered such a query fails its next task, which makes the SDK forget it;
the server sends that task again at once, with the whole history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.workflow import _Definition

MESSAGE = "a query ran ahead of this task; the workflow is loaded again"


class EarlyQueryGuard(WorkflowRunner):
    """Runs workflows by another runner; none goes on from where only a query has brought it."""

    def __init__(self, runner: WorkflowRunner) -> None:
        self._runner = runner

    def prepare_workflow(self, defn: _Definition) -> None:
        """See base class."""
        self._runner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        """See base class."""
        return _Guarded(self._runner.create_instance(det))

    def set_worker_level_failure_exception_types(
        self, types: Sequence[type[BaseException]]
    ) -> None:
        """See base class."""
        self._runner.set_worker_level_failure_exception_types(types)


class _Guarded(WorkflowInstance):
    """One cached workflow."""

    def __init__(self, instance: WorkflowInstance) -> None:
        self._instance = instance
        self._task_started_at = 0
        self._history_length = 0
        self._ran_ahead = False

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        """Hand on the activation, unless it would build on what ran ahead.

        An activation that belongs to no workflow task has more history than the one before, yet
        the same time, which is that of the start of the newest task.
        """
        if any(job.HasField("remove_from_cache") for job in act.jobs):
            return self._instance.activate(act)
        is_query = all(job.HasField("query_workflow") for job in act.jobs)
        if self._ran_ahead and not is_query:
            refused = WorkflowActivationCompletion(run_id=act.run_id)
            refused.failed.failure.message = MESSAGE
            return refused
        task_started_at = act.timestamp.ToNanoseconds()
        has_grown = act.history_length > self._history_length
        if has_grown and not act.is_replaying and task_started_at == self._task_started_at:
            self._ran_ahead = True
        self._task_started_at, self._history_length = task_started_at, act.history_length
        return self._instance.activate(act)

    def get_serialization_context(self, command_info: Any) -> Any:
        """See base class."""
        return self._instance.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        """See base class."""
        return self._instance.get_external_store_context(command_info)

    def get_info(self) -> Any:
        """See base class."""
        return self._instance.get_info()

    def get_thread_id(self) -> int | None:
        """See base class."""
        return self._instance.get_thread_id()
