"""Functions whose calls are logged: how long they took, and the numbers that they returned."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from loomos.errors import InvalidInput
from loomos.loomdb.event_types import EventType

Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])


class Log(Protocol):
    """What takes events."""

    async def log_event(
        self, event_type: str, data: Mapping[str, Any], *, stream: str | None = None
    ) -> Any:
        """Log one."""
        ...


def logged(log: Log, function: Function) -> Function:
    """A coroutine function that logs a `performance_metric` each time it ends.

    The event is about `function:MODULE.NAME`; it has `duration_s`, `succeeded`, and the numbers of
    a mapping that the function returns. `get_performance_metrics` of that stream sums them up.

    Raises:
        InvalidInput: it is no coroutine function.
    """
    if not inspect.iscoroutinefunction(function):
        raise InvalidInput(
            f"{function.__qualname__} is no coroutine function; write `async def` to have it logged"
        )
    stream = f"function:{function.__module__}.{function.__qualname__}".replace("<locals>.", "")

    @functools.wraps(function)
    async def call(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        numbers: dict[str, Any] = {"succeeded": False}
        try:
            result = await function(*arguments, **named)
            numbers["succeeded"] = True
            if isinstance(result, Mapping):
                numbers |= {k: v for k, v in result.items() if isinstance(v, int | float)}
            return result
        finally:
            numbers["duration_s"] = time.perf_counter() - began
            await log.log_event(EventType.PERFORMANCE_METRIC, numbers, stream=stream)

    return call  # type: ignore[return-value]
