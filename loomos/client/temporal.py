"""The one way to connect to Temporal: gateway, workers, replayer and tests all use it."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.plugin import SimplePlugin
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError

from loomos.errors import Unavailable
from loomos.settings import TemporalSettings


def loom_plugin() -> SimplePlugin:
    """What every Temporal client and worker of LoomOS shares."""
    return SimplePlugin("loomos", data_converter=pydantic_data_converter)


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
