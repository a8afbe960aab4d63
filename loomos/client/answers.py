"""Calls to Temporal: how long they may take, and how their failures become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from temporalio.client import (
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from loomos.errors import (
    Conflict,
    InvalidInput,
    LoomOSError,
    NotFound,
    Stuck,
    TooLarge,
    Unavailable,
)

ANSWER_TIMEOUT_S = 10.0
"""How long a workflow may take to answer an update or query."""

T = TypeVar("T")


async def answered(call: Awaitable[T], timeout_s: float = ANSWER_TIMEOUT_S) -> T:
    """Await a call to Temporal; its failures become ours."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
        # The latter is what the SDK makes of the end of our time.
        raise Unavailable(
            f"no answer within {timeout_s:.0f} s; is a control worker running?"
        ) from None
    except WorkflowUpdateFailedError as error:
        raise _from_failure(error.cause) from None
    except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
        raise Unavailable(f"the workflow does not answer: {error}") from None
    except RPCError as error:
        raise _from_rpc(error) from None


def failure(error: WorkflowFailureError) -> LoomOSError:
    """What made a workflow fail, as one of ours."""
    cause: BaseException | None = error.cause
    if isinstance(cause, ActivityError):
        cause = cause.cause
    return _from_failure(cause)


def _from_failure(cause: BaseException | None) -> LoomOSError:
    kinds: dict[str, type[LoomOSError]] = {
        "Conflict": Conflict,
        "InvalidInput": InvalidInput,
        "NotFound": NotFound,
        "Unavailable": Unavailable,
    }
    if isinstance(cause, ApplicationError) and cause.type in kinds:
        return kinds[cause.type](cause.message)
    return Conflict(str(cause))


_TOO_LARGE = ("exceeds size limit", "exceeds limit", "larger than max")
"""What Temporal says of payloads over its limits, in different words at different doors."""


def _from_rpc(error: RPCError) -> LoomOSError:
    if error.status == RPCStatusCode.NOT_FOUND:
        return NotFound(error.message)
    if any(words in error.message for words in _TOO_LARGE):
        return TooLarge(f"Temporal does not take so much ({error.message}); make it smaller")
    if "Workflow Task in failed state" in error.message:
        return Stuck("its workflow fails at every step that it tries; it can be cancelled")
    if error.status == RPCStatusCode.INVALID_ARGUMENT:
        return InvalidInput(error.message)
    if error.status == RPCStatusCode.FAILED_PRECONDITION:
        return Unavailable(f"no control worker answers ({error.message})")
    return Unavailable(f"Temporal: {error.message}; `loomos status` tells")
