"""The scheduler over HTTP."""

from __future__ import annotations

from loomos.client.transport import Transport
from loomos.jobs.cluster import AdviceList, ClusterStatus, SchedulerConfig


class SchedulerApi:
    """How the cluster decides: `client.scheduler`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def config(self) -> SchedulerConfig:
        """The rules in force."""
        return await self._transport.call("GET", "/scheduler/config", SchedulerConfig)

    async def configure(self, config: SchedulerConfig) -> ClusterStatus:
        """Decide in another way from now on; answers with the cluster after it.

        Raises:
            InvalidInput: there is no such policy.
        """
        return await self._transport.call(
            "PUT", "/scheduler/config", ClusterStatus, json=config.model_dump(mode="json")
        )

    async def advice(self) -> AdviceList:
        """What waiting and running jobs could ask for differently."""
        return await self._transport.call("GET", "/scheduler/advice", AdviceList)
