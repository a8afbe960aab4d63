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
        self._looked_at = 0.0
        self._looking = asyncio.Lock()

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

    async def _route(self, endpoint: str) -> Route:
        route = self._table.routes.get(endpoint)
        if route is None or route.is_closed:
            await self._look(at_once=True)
            route = self._table.routes.get(endpoint)
        if route is None or route.is_closed:
            known = sorted(name for name, r in self._table.routes.items() if not r.is_closed)
            raise NotFound(f"no endpoint {endpoint!r}; known: {', '.join(known) or 'none'}")
        return route

    async def _look(self, *, at_once: bool = False) -> None:
        async with self._looking:
            if not at_once and time.monotonic() - self._looked_at < FRESH_S:
                return
            self._servers, _ = await asyncio.gather(
                asyncio.to_thread(read_servers, self._store),
                asyncio.to_thread(self._table.refresh),
            )
            self._looked_at = time.monotonic()
