"""The one way to connect to Temporal: gateway, workers, replayer and tests all use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    SignalWorkflowInput,
    StartWorkflowInput,
    StartWorkflowUpdateInput,
    WorkflowHandle,
    WorkflowUpdateHandle,
)
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.plugin import SimplePlugin
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError

from loomos.errors import TooLarge, Unavailable
from loomos.settings import TemporalSettings

MOST_BYTES = 1024 * 1024
"""What one message to a workflow may take. Temporal takes twice that, but a workflow hands what it
got on to activities, with more around it."""


def loom_plugin() -> SimplePlugin:
    """What every Temporal client and worker of LoomOS shares."""
    return SimplePlugin(
        "loomos", data_converter=pydantic_data_converter, interceptors=[SizeLimit()]
    )


class SizeLimit(Interceptor):
    """Refuses what Temporal would not take, before it is sent and tried again for ten seconds."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        """Wrap the next interceptor."""
        return _Limited(next)


class _Limited(OutboundInterceptor):
    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
        _check_size(input.args)
        return await self.next.start_workflow(input)

    async def start_workflow_update(
        self, input: StartWorkflowUpdateInput
    ) -> WorkflowUpdateHandle[Any]:
        _check_size(input.args)
        return await self.next.start_workflow_update(input)

    async def signal_workflow(self, input: SignalWorkflowInput) -> None:
        _check_size(input.args)
        await self.next.signal_workflow(input)


def _check_size(arguments: Sequence[Any]) -> None:
    payloads = pydantic_data_converter.payload_converter.to_payloads(arguments)
    size = sum(len(payload.data) for payload in payloads)
    if size > MOST_BYTES:
        raise TooLarge(
            f"this document takes {size:,} bytes as JSON; a workflow takes at most "
            f"{MOST_BYTES:,}: make it smaller, or put large values into files"
        )


async def connect(settings: TemporalSettings, *, patience_s: float = 10.0) -> Client:
    """Connect to Temporal, waiting for it to come up.

    Args:
        settings: where it is.
        patience_s: how long to keep trying.

    Raises:
        Unavailable: nobody answers there.
    """
    runtime = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=5))
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await Client.connect(
                settings.address,
                namespace=settings.namespace,
                plugins=[loom_plugin()],
                runtime=runtime,
            )
        except (RuntimeError, RPCError) as error:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Temporal at {settings.address} cannot be reached ({error}); "
                    f"is it running? `loomos status` tells"
                ) from error
        await asyncio.sleep(0.2)
