"""The route rows as a server knows them, and how they are changed.

A server looks for newer rows several times a second; a change costs it one listing and one read
per endpoint. Everyone who changes a row reads it, and creates the next revision or tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from loomos.errors import Conflict, NotFound
from loomos.jobs.serving import Route
from loomos.storage import Store
from loomos.storage.layout import ENDPOINTS_PREFIX, routes_prefix
from loomos.storage.register import Register

Change = Callable[[Route], Route]
"""Makes the next row of the present one; it may raise `Conflict`."""


def read_route(store: Store, endpoint: str) -> Route:
    """The newest row of an endpoint.

    Raises:
        NotFound: there is no such endpoint.
    """
    newest = Register(store, routes_prefix(endpoint)).read()
    if newest is None:
        raise no_endpoint(endpoint)
    return Route.model_validate_json(newest.data)


def create_route(store: Store, route: Route) -> Route:
    """Write an endpoint's first row; a retry finds it written.

    Raises:
        Conflict: there is such an endpoint.
    """
    register = Register(store, routes_prefix(route.endpoint))
    newest = register.read()
    if newest is not None:
        found = Route.model_validate_json(newest.data)
        if not found.is_closed:
            if found.issued_by == route.issued_by:
                return found
            raise Conflict(f"endpoint {route.endpoint!r} exists; configure or delete it")
        route = route.model_copy(update={"generation": newest.number + 1})
    register.write(route.generation, route.model_dump_json().encode())
    return route


def change_route(store: Store, endpoint: str, issued_by: str, change: Change) -> Route:
    """Write the next row; whoever else writes meanwhile is taken into account.

    Args:
        store: where the rows are.
        endpoint: whose.
        issued_by: who changes it.
        change: makes the next row; it is called again if somebody else was faster. If it returns
            the row it got, nothing is written.

    Raises:
        NotFound: there is no such endpoint.
        Conflict: `change` refuses.
    """

    def next_row(route: Route | None) -> Route:
        if route is None or route.is_closed:
            raise no_endpoint(endpoint)
        wanted = change(route)
        if wanted == route:
            return route
        return wanted.model_copy(
            update={
                "generation": route.generation + 1,
                "issued_at": datetime.now(UTC),
                "issued_by": issued_by,
            }
        )

    return Register(store, routes_prefix(endpoint)).change(Route, next_row)


def no_endpoint(name: str) -> NotFound:
    """What is raised where there is no such endpoint, or none any more."""
    return NotFound(f"no endpoint {name!r}; `loomos endpoints list` shows them")


class RouteTable:
    """The newest row of every endpoint, kept by polling."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.routes: dict[str, Route] = {}

    def refresh(self) -> list[Route]:
        """Look for newer rows; returns those that changed."""
        changed: list[Route] = []
        for child in self._store.children(ENDPOINTS_PREFIX):
            name = child.rstrip("/")
            known = self.routes.get(name)
            newest = Register(self._store, routes_prefix(name)).read(
                known.generation if known else 0
            )
            if newest is not None:
                route = Route.model_validate_json(newest.data)
                self.routes[name] = route
                changed.append(route)
        return changed
