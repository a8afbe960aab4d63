"""The one place where LoomOS errors become Temporal failures, and long threads heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from loomos.errors import LoomOSError
from loomos.limits import printable

T = TypeVar("T")

LONGEST_MESSAGE = 2000


class FailureInterceptor(Interceptor):
    """Maps `LoomOSError` to `ApplicationError`, with its class name as the type."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """Wrap the next interceptor."""
        return _Inbound(next)


class _Inbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await self.next.execute_activity(input)
        except LoomOSError as error:
            raise application_error(
                type(error).__name__, printable(str(error)), retryable=error.retryable
            ) from error


def application_error(
    kind: str, message: str, *, retryable: bool, step: int | None = None
) -> ApplicationError:
    """A failure as workflows see it; long messages are cut, since history keeps them.

    `step`, how far training had come, goes along as the failure's detail.
    """
    details = [] if step is None else [step]
    return ApplicationError(
        message[:LONGEST_MESSAGE].encode(errors="replace").decode(),
        *details,
        type=kind,
        non_retryable=not retryable,
    )


_OF_THE_INPUT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the same input raises again, as a rule; an outage raises other things."""
TRIES = 5


@contextmanager
def final_when_repeated(what: str) -> Iterator[None]:
    """Make an error that nobody foresaw final once it has come several times.

    Tried for ever, it would only show as a job that does not get on.

    Args:
        what: what is being done, for the message.
    """
    try:
        yield
    except LoomOSError:
        raise
    except _OF_THE_INPUT as error:
        if activity.info().attempt < TRIES:
            raise
        raise application_error(
            "InvalidInput",
            f"{what}: {type(error).__name__}: {printable(str(error))}; it was tried "
            f"{activity.info().attempt} times",
            retryable=False,
        ) from error


async def in_thread(
    call: Callable[[Callable[[str], None]], T], every_s: float = 2.0, first: str = ""
) -> T:
    """Run blocking work in a thread and heartbeat while it runs.

    Args:
        call: gets a function to say what it is doing; that becomes the heartbeat's detail.
        every_s: seconds between heartbeats.
        first: detail of the first heartbeat.
    """
    doing = [first]

    def say(what: str) -> None:
        doing[0] = what

    task = asyncio.ensure_future(asyncio.to_thread(call, say))
    while not task.done():
        activity.heartbeat(doing[0])
        await asyncio.wait([task], timeout=every_s)
    return await task
