"""What lies at the bottom of a failure, in words."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from loomos.errors import LoomOSError

CANCEL_GOES_ON = "cancel-ends-delivery"
"""Patch since which a job that is cancelled while it delivers is cancelled, not completed."""


def root_cause(error: BaseException) -> str:
    """The message of the error that caused all the others.

    Causes may go round in a circle (`raise inner from outer`, where `outer` was caused by
    `inner`): the bottom is then where the circle begins.
    """
    seen = {id(error)}
    bottom = error
    while (cause := bottom.__cause__) is not None:
        if id(cause) in seen:
            return _words(cause)
        seen.add(id(cause))
        bottom = cause
    return _words(bottom)


def _words(error: BaseException) -> str:
    return getattr(error, "message", "") or str(error) or type(error).__name__


def as_failure(error: Exception) -> FailureError | None:
    """An error that ends a workflow, as Temporal has them; None if it is a mistake of ours.

    A mistake of ours is no result of anybody's run. It must be raised and nothing else: Temporal
    then tries the workflow's task again, and the run goes on once the mistake is mended.
    """
    if isinstance(error, FailureError):
        return error
    if isinstance(error, LoomOSError):
        return ApplicationError(
            str(error), type=type(error).__name__, non_retryable=not error.retryable
        )
    return None


def is_own_cancel(error: BaseException) -> bool:
    """Whether a child ended cancelled because this workflow is, and not by itself."""
    return (
        is_cancelled_exception(error)
        and workflow.cancellation_reason() is not None
        and workflow.patched(CANCEL_GOES_ON)
    )
