"""A gang of activities that live and die together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from loomos.errors import Unavailable
    from loomos.jobs.cluster import Lease, LeaseRevoked
    from loomos.jobs.training import ModelVersion, TrainOutcome


MACHINE_ERRORS = frozenset(
    {
        "AttemptFailed",
        "Unavailable",
        "NodeLeft",
        "OSError",
        "TimeoutError",
        "EOFError",
        "ConnectionError",
        "ConnectionResetError",
        "ConnectionRefusedError",
        "ConnectionAbortedError",
        "BrokenPipeError",
        "DistError",
        "DistBackendError",
        "DistNetworkError",
        "DistStoreError",
        "RendezvousError",
        "RendezvousTimeoutError",
        "RendezvousConnectionError",
        "SignalException",
    }
)
"""Classes of errors that say nothing of the program: another attempt may not meet them."""
_MACHINE_WORDS = re.compile(
    r"gloo|nccl|connection|broken pipe|socket|timed? ?out|peer|rendezvous|tcpstore|signal",
    re.IGNORECASE,
)
"""Words by which an error of a general class is one of the network, as when another rank died."""
_VOLATILE = re.compile(r"0x[0-9a-f]+|\d+")
"""What differs between two tellings of the same error: ranks, addresses, sizes."""

Member = workflow.ActivityHandle[Any]
"""The running activity of one node."""


@dataclass(frozen=True, kw_only=True)
class GangEnd:
    """A gang that ended in order: done, or stopped because somebody wished so."""

    wish: str = ""
    """Why it was stopped; empty if it was not."""
    outcome: TrainOutcome | None = None
    """Result of the first node, if it trained."""
    version: ModelVersion | None = None
    """Result, if it published."""


@dataclass(frozen=True, kw_only=True)
class GangFailed:
    """A gang that broke."""

    reason: str
    """For people."""
    step: int | None = None
    """Last step that a member told of."""
    fatal: ActivityError | None = None
    """Error that a new gang would meet again."""
    kind: str = ""
    """Class of the exception that broke it."""

    @property
    def signature(self) -> str:
        """Equal for the same exception of the program at the same step; empty for the machine's."""
        if not self.kind or self.kind in MACHINE_ERRORS or _MACHINE_WORDS.search(self.reason):
            return ""
        words = _VOLATILE.sub("#", self.reason)
        return f"{self.step or 0}:{self.kind}:{words}"[:500]


class GangCancelled(asyncio.CancelledError):
    """The workflow was cancelled, and its gang has ended.

    Args:
        end: how.
    """

    def __init__(self, end: GangEnd | GangFailed) -> None:
        super().__init__("cancelled")
        self.end = end


async def run_gang(
    lease: Lease,
    handles: Sequence[Member],
    why_stop: Callable[[], tuple[str, LeaseRevoked | None]],
    time_left: timedelta | None,
) -> GangEnd | GangFailed:
    """Watch a gang to its end.

    It ends when all members are done, when one fails (the others are cancelled), when `why_stop`
    gives a wish or a revoked lease, or when its time is up. Members on lost nodes are not waited
    for. If the workflow is cancelled, the members are, and then the cancellation goes on.

    Args:
        lease: the nodes, in the order of `handles`.
        handles: one running activity per node.
        why_stop: asked after every event for (wish, revocation).
        time_left: time after which the gang is stopped with the wish `duration`.
    """
    members = dict(zip((node.node_id for node in lease.nodes), handles, strict=False))

    def living() -> list[Member]:
        _, revoked = why_stop()
        lost = set(revoked.lost_nodes) if revoked else set()
        return [handle for node_id, handle in members.items() if node_id not in lost]

    wish = ""
    cancelled: asyncio.CancelledError | None = None
    try:
        await workflow.wait_condition(
            lambda: (
                all(handle.done() for handle in handles)
                or any(_failed(handle) for handle in handles)
                or any(why_stop())
            ),
            timeout=time_left,
        )
        wish, _ = why_stop()
    except TimeoutError:
        wish = "duration"
    except asyncio.CancelledError as error:
        cancelled = error
    for handle in living():
        if not handle.done():
            handle.cancel()
    await _all_done(living)
    if cancelled is not None:
        raise GangCancelled(_judge(living(), "cancelled", None)) from cancelled
    _, revoked = why_stop()
    return _judge(living(), wish, revoked)


async def _all_done(living: Callable[[], list[Member]]) -> None:
    """Wait for members to end; one whose node is lost meanwhile is waited for no longer."""
    while not all(handle.done() for handle in living()):
        try:
            await workflow.wait_condition(lambda: all(handle.done() for handle in living()))
        except asyncio.CancelledError:
            # A second cancel changes nothing: the members are stopping already.
            continue


def _failed(handle: Member) -> bool:
    return handle.done() and (handle.cancelled() or handle.exception() is not None)


def _judge(
    handles: Sequence[Member], wish: str, revoked: LeaseRevoked | None
) -> GangEnd | GangFailed:
    """Say how a gang ended from how its members did."""
    errors = [
        error
        for handle in handles
        if not handle.cancelled() and (error := handle.exception()) is not None
    ]
    fatal = next((error for error in errors if _is_fatal(error)), None)
    step = max((_step_of(error) for error in errors), default=0) or None
    if fatal is not None:
        return GangFailed(
            reason=_reason(fatal),
            step=step,
            fatal=fatal,  # type: ignore[arg-type]
            kind=_kind(fatal),
        )
    results = [handle.result() for handle in handles if not _failed(handle)]
    finished = [r for r in results if isinstance(r, TrainOutcome) and r.status == "completed"]
    if len(finished) == len(handles) and finished:
        return GangEnd(outcome=finished[0])
    published = next((result for result in results if isinstance(result, ModelVersion)), None)
    if published is not None:
        return GangEnd(version=published)
    if revoked is not None and revoked.lost_nodes:
        return GangFailed(reason=revoked.reason, step=step)
    real = [error for error in errors if not is_cancelled_exception(error)]
    if real and not (wish or revoked):
        # Where one member misses the store, others miss that member.
        first = min(real, key=lambda error: _kind(error) != Unavailable.__name__)
        return GangFailed(reason=_reason(first), step=step, kind=_kind(first))
    outcome = next((result for result in results if isinstance(result, TrainOutcome)), None)
    if not wish and revoked is None and outcome is None:
        return GangFailed(reason=_reason(errors[0]) if errors else "the gang was cancelled")
    return GangEnd(wish=wish or "revoked", outcome=outcome)


def _step_of(error: BaseException) -> int:
    """The step that a failed activity gave as its failure's detail."""
    cause = error.cause if isinstance(error, ActivityError) else None
    details = cause.details if isinstance(cause, ApplicationError) else ()
    return int(details[0]) if details else 0


def _is_fatal(error: BaseException) -> bool:
    return (
        isinstance(error, ActivityError)
        and isinstance(error.cause, ApplicationError)
        and error.cause.non_retryable
    )


def _kind(error: BaseException) -> str:
    cause = error.cause if isinstance(error, ActivityError) else None
    return (cause.type or "") if isinstance(cause, ApplicationError) else ""


def _reason(error: BaseException) -> str:
    cause = error.cause if isinstance(error, ActivityError) and error.cause else error
    where = f"{error.activity_type} " if isinstance(error, ActivityError) else ""
    return f"{where}failed: {cause}"
