"""Which servers hold an endpoint's models: as many as the queue asks for, changed little.

Pure but for the clock, so that a minute need not pass in tests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from loomos.jobs.serving import EndpointSpec, Placement, Route, ServerStatus
from loomos.serving.servers import is_alive

SHRINK_AFTER_S = 60.0
"""How long fewer replicas must be enough before one is taken away."""


class Scale:
    """Decides who holds an endpoint's models, from the servers' words."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._enough_since: float | None = None

    def decide(self, route: Route, servers: list[ServerStatus]) -> Placement | None:
        """Other replicas than now, if there should be; they change as little as possible."""
        alive = {server.server_id: server for server in servers if is_alive(server)}
        keeping = [name for name in route.replicas if name in alive]
        wanted = self._wanted(route.spec, len(keeping), [alive[name] for name in keeping], route)
        spare = sorted(
            alive.keys() - set(keeping), key=lambda name: (len(alive[name].loaded), name)
        )
        chosen = (keeping + spare)[:wanted]
        lost = [name for name in route.replicas if name not in alive]
        # Better one that may come back than none.
        chosen += lost[: max(0, min(wanted, len(route.replicas)) - len(chosen))]
        if sorted(chosen) == sorted(route.replicas):
            return None
        reason = f"{len(chosen)} of {len(alive)} servers hold it"
        if lost:
            reason += f"; {', '.join(lost)} lost"
        return Placement(replicas=chosen, reason=reason)

    def _wanted(
        self, spec: EndpointSpec, have: int, holders: list[ServerStatus], route: Route
    ) -> int:
        waiting = sum(server.waiting.get(route.endpoint, 0) for server in holders)
        needed = math.ceil(waiting / spec.replicas.queue_per_replica)
        needed = max(spec.replicas.min, min(spec.replicas.max, needed))
        if needed >= have:
            self._enough_since = None
            return needed
        self._enough_since = self._enough_since or self._clock()
        is_long_enough = self._clock() - self._enough_since >= SHRINK_AFTER_S
        return needed if is_long_enough or have > spec.replicas.max else have
