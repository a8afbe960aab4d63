"""The route rows as a server knows them, and how they are changed.

A server looks for newer rows several times a second, which costs one listing for each endpoint that
exists; a change costs one read. The rows of an endpoint go when it is closed: its last one is kept
elsewhere, for an endpoint of the same name to go on counting. Everyone who changes a row reads it,
and creates the next revision or tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from loomos.errors import Conflict, NotFound
from loomos.jobs.serving import Route
from loomos.serving.routes import has_lapsed
from loomos.storage import Store
from loomos.storage.layout import (
    LIVING_ENDPOINTS_PREFIX,
    closed_endpoint_key,
    endpoint_prefix,
    living_endpoint_key,
    routes_prefix,
)
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
                mark_living(store, route.endpoint)
                return found
            raise Conflict(f"endpoint {route.endpoint!r} exists; configure or delete it")
        route = route.model_copy(update={"generation": newest.number + 1})
    elif (closed := _closed(store, route.endpoint)) is not None:
        route = route.model_copy(update={"generation": closed.generation + 1})
    register.write(route.generation, route.model_dump_json().encode())
    mark_living(store, route.endpoint)
    return route


def mark_living(store: Store, endpoint: str) -> None:
    """Have servers look for an endpoint's rows."""
    if not store.exists(living_endpoint_key(endpoint)):
        store.put(living_endpoint_key(endpoint), b"")


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


def close_route(store: Store, endpoint: str, issued_by: str) -> None:
    """Write that an endpoint is gone, and put its rows away; done again it changes nothing.

    Raises:
        NotFound: there has never been such an endpoint.
        Conflict: a canary is on trial.
    """

    def change(route: Route) -> Route:
        if route.canary is not None and not has_lapsed(route, datetime.now(UTC)):
            raise Conflict(f"{endpoint} has a canary on trial; abort it first")
        return route.model_copy(update={"is_closed": True, "replicas": []})

    register = Register(store, routes_prefix(endpoint))
    newest = register.read()
    if newest is None:
        if _closed(store, endpoint) is None:
            raise no_endpoint(endpoint)
        return
    route = Route.model_validate_json(newest.data)
    if not route.is_closed:
        route = change_route(store, endpoint, issued_by, change)
    # First the number to go on from, then the rows: whoever makes the endpoint anew finds one.
    store.put(closed_endpoint_key(endpoint), route.model_dump_json().encode())
    last, newer = register.key(route.generation), routes_prefix(endpoint)
    store.delete([living_endpoint_key(endpoint)])
    there = [item.key for item in store.objects(endpoint_prefix(endpoint))]
    store.delete([key for key in there if key <= last or not key.startswith(newer)])


def _closed(store: Store, endpoint: str) -> Route | None:
    """The last row of an endpoint of this name that is gone."""
    try:
        return Route.model_validate_json(store.get(closed_endpoint_key(endpoint)))
    except NotFound:
        return None


def no_endpoint(name: str) -> NotFound:
    """What is raised where there is no such endpoint, or none any more."""
    return NotFound(f"no endpoint {name!r}; `loomos endpoints list` shows them")


class RouteTable:
    """The newest row of every endpoint that exists, kept by polling."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.routes: dict[str, Route] = {}

    def refresh(self) -> list[Route]:
        """Look for newer rows; returns those that changed, as closed where an endpoint is gone."""
        changed: list[Route] = []
        living = self._store.objects(LIVING_ENDPOINTS_PREFIX)
        names = [item.key.removeprefix(LIVING_ENDPOINTS_PREFIX) for item in living]
        for name in self.routes.keys() - set(names):
            changed.append(self.routes.pop(name).model_copy(update={"is_closed": True}))
        for name in names:
            known = self.routes.get(name)
            newest = Register(self._store, routes_prefix(name)).read(
                known.generation if known else 0
            )
            if newest is not None:
                route = Route.model_validate_json(newest.data)
                self.routes[name] = route
                changed.append(route)
        return changed
