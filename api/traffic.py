"""Where requests to models go: servers and route rows, read from the store at most so often."""

from __future__ import annotations

import asyncio
import time

from loomos.errors import NotFound
from loomos.jobs.serving import Route, ServerStatus
from loomos.serving.servers import is_alive, read_servers
from loomos.serving.table import RouteTable
from loomos.storage import Store

FRESH_S = 0.5
"""How old what is known may be."""


class Traffic:
    """The gateway's view of the servers, shared by all requests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = RouteTable(store)
        self._servers: list[ServerStatus] = []
        self._began_at, self._looked_at = 0.0, 0.0
        self._looking, self._forcing = asyncio.Lock(), asyncio.Lock()

    async def holders(self, endpoint: str) -> list[ServerStatus]:
        """Living servers that answer for an endpoint, the best first; all for an empty name.

        Raises:
            NotFound: there is no such endpoint.
        """
        await self._look()
        servers = [server for server in self._servers if is_alive(server)]
        if not endpoint:
            return servers
        route = await self._route(endpoint)
        holders = [server for server in servers if server.server_id in route.replicas]

        def burden(server: ServerStatus) -> tuple[bool, int]:
            return route.stable.version not in server.loaded, sum(server.waiting.values())

        return sorted(holders, key=burden)

    async def endpoint_of(self, name: str) -> str:
        """The endpoint of this name, or the first that serves the model or version of this name.

        Raises:
            NotFound: there is none.
        """
        await self._look()
        found = self._endpoint_of(name)
        if found is None:
            await self._look_anew()
            found = self._endpoint_of(name)
        if found is None:
            raise NotFound(
                f"no endpoint {name!r}, nor one that serves such a model; endpoints: "
                f"{', '.join(sorted(self._living())) or 'none'}"
            )
        return found

    def _endpoint_of(self, name: str) -> str | None:
        living = self._living()
        if name in living:
            return name
        for endpoint, route in sorted(living.items()):
            served = route.stable.version
            if name in (served, served.partition("@")[0]):
                return endpoint
        return None

    async def _route(self, endpoint: str) -> Route:
        route = self._living().get(endpoint)
        if route is None:
            await self._look_anew()
            route = self._living().get(endpoint)
        if route is None:
            known = ", ".join(sorted(self._living())) or "none"
            raise NotFound(f"no endpoint {endpoint!r}; known: {known}")
        return route

    def _living(self) -> dict[str, Route]:
        routes = self._table.routes.copy()  # a thread may be changing it
        return {name: route for name, route in routes.items() if not route.is_closed}

    async def _look_anew(self) -> None:
        """Wait for a look that began after this call.

        It comes when what is known is no longer fresh, and is one for all who wait: names that do
        not exist cost the store no more than others, and hold up nobody who asks for one that does.
        """
        came = time.monotonic()
        async with self._forcing:
            while self._began_at < came:
                await asyncio.sleep(self._looked_at + FRESH_S - time.monotonic())
                await self._look()

    async def _look(self) -> None:
        async with self._looking:
            began = time.monotonic()
            if began - self._looked_at < FRESH_S:
                return
            self._servers, _ = await asyncio.gather(
                asyncio.to_thread(read_servers, self._store),
                asyncio.to_thread(self._table.refresh),
            )
            self._began_at, self._looked_at = began, time.monotonic()
