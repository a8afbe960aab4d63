"""Endpoints and the registry: route rows, placements, versions and aliases in the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime

from temporalio import activity

from activities.failures import in_thread
from loomos.errors import Conflict, NotFound
from loomos.jobs.message import Empty
from loomos.jobs.serving import (
    CloseEndpoint,
    ModelChange,
    OpenEndpoint,
    Placement,
    PlaceReplicas,
    Route,
    Target,
    WatchEndpoint,
)
from loomos.jobs.training import ModelVersion
from loomos.loomdb import AuditContext, LoomDB, NewEvent
from loomos.prism.detectors import find_serving_detector
from loomos.provenance import attestation
from loomos.provenance.dsse import read_key
from loomos.registry import Registry, VersionManifest
from loomos.registry.references import ModelRef
from loomos.serving.scaling import Scale
from loomos.serving.servers import read_servers
from loomos.serving.table import (
    RouteTable,
    change_route,
    close_route,
    create_route,
    mark_living,
    read_route,
)
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import attestation_key

LOOK_S = 1.0
"""How often an endpoint's servers are looked at."""


class EndpointActivities:
    """Activities of the control worker."""

    def __init__(self, settings: Settings, db: LoomDB) -> None:
        self._settings, self._db = settings, db
        self._store = open_store(settings.storage)

    @activity.defn
    async def open_endpoint(self, request: OpenEndpoint) -> Route:
        """Write the endpoint's first row, or one with a changed spec.

        Raises:
            NotFound: there is no such model.
            Conflict: the version cannot change while a canary is on trial.
            InvalidInput: a detector is unknown, or the engine cannot serve such a model.
        """
        store = self._store
        route = await in_thread(lambda say: _open(store, request))
        await self._record(
            f"endpoint:{request.name}",
            NewEvent(
                event_type="endpoint_configured",
                data={
                    "endpoint": request.name,
                    "generation": route.generation,
                    "spec": request.spec.model_dump(mode="json"),
                    "version": route.stable.version,
                },
                event_id=f"{request.name}/{request.request}",
            ),
            request.owner,
        )
        return route

    @activity.defn
    async def watch_endpoint(self, watch: WatchEndpoint) -> Placement:
        """Look at the servers until the endpoint's models should be held by others than now."""
        store = self._store
        scale = Scale()
        await in_thread(lambda say: mark_living(store, watch.name))
        while True:
            route, servers = await in_thread(
                lambda say: (read_route(store, watch.name), read_servers(store))
            )
            placement = scale.decide(route, servers)
            if placement is not None:
                return placement
            activity.heartbeat()
            await asyncio.sleep(LOOK_S)

    @activity.defn
    async def place_replicas(self, request: PlaceReplicas) -> Route:
        """Write who holds the endpoint's models."""
        store = self._store

        def change(route: Route) -> Route:
            return route.model_copy(update={"replicas": request.replicas})

        return await in_thread(
            lambda say: change_route(store, request.name, request.issued_by, change)
        )

    @activity.defn
    async def close_endpoint(self, request: CloseEndpoint) -> Empty:
        """Write that the endpoint is gone.

        Raises:
            Conflict: a canary is on trial.
        """
        store = self._store
        await in_thread(lambda say: close_route(store, request.name, request.issued_by))
        return Empty()

    @activity.defn
    async def change_registry(self, change: ModelChange) -> ModelVersion:
        """Register a version, move or remove an alias, or delete a version; record it.

        Raises:
            InvalidInput: the files are no model.
            NotFound: there is no such version, or a blob is missing.
            Conflict: the alias is elsewhere, or the version is in use.
        """
        store = self._store
        request = activity.info().workflow_run_id or activity.info().activity_id
        made = await in_thread(lambda say: self._change(store, change, request))
        data = {
            "action": change.action,
            "alias": change.alias,
            "name": made.name,
            "version": made.version,
            "weights_sha256": made.weights_sha256,
        }
        await self._record(
            f"model:{change.name}",
            NewEvent(event_type="registry_changed", data=data, event_id=f"registry/{request}"),
            change.person,
        )
        return made

    def _change(self, store: Store, change: ModelChange, request: str) -> ModelVersion:
        registry = Registry(store)
        if change.action == "register":
            lineage = {"uploaded": True}
            manifest = registry.write(
                change.name, change.files, lineage, lambda made: self._sign(store, made)
            )
        else:
            manifest = registry.manifest(ModelRef(change.name, change.version))
        if change.action == "alias":
            expected: dict[str, str | None] | None = (
                None if change.expected is None else {change.alias: change.expected}
            )
            registry.aliases(change.name).move(
                {change.alias: manifest.version},
                by="ModelChange",
                request=request,
                expected=expected,
            )
        if change.action == "unalias":
            self._remove_alias(store, change, manifest, request)
        if change.action == "delete":
            version = f"{manifest.name}@{manifest.version}"
            routes = _routes(store)
            serving = [r.endpoint for r in routes if version in _versions(r)]
            if serving:
                raise Conflict(f"{version} is served by {', '.join(serving)}; change that first")
            based = [r.endpoint for r in routes if version in _bases(registry, r)]
            if based:
                raise Conflict(
                    f"an adapter on {version} is served by {', '.join(based)}; change that first"
                )
            registry.delete(ModelRef(change.name, manifest.version))
        return ModelVersion.model_validate(
            manifest.model_dump(include=set(ModelVersion.model_fields))
        )

    def _remove_alias(
        self, store: Store, change: ModelChange, manifest: VersionManifest, request: str
    ) -> None:
        version = f"{manifest.name}@{manifest.version}"
        arms = {"stable": lambda r: r.stable, "canary": lambda r: r.canary}
        if change.alias in arms:
            at = [(r.endpoint, arms[change.alias](r)) for r in _routes(store)]
            serving = [name for name, target in at if target and target.version == version]
            if serving:
                raise Conflict(
                    f"{version} is {change.alias} at {', '.join(serving)}; delete the endpoint, "
                    "or serve another version there, first"
                )
        Registry(store).aliases(change.name).move(
            {change.alias: None},
            by="ModelChange",
            request=request,
            expected={change.alias: manifest.version},
        )

    def _sign(self, store: Store, manifest: VersionManifest) -> None:
        key_file = self._settings.loomdb.attestation_key_file
        assert key_file is not None  # the control worker does not start without one
        files = {name: facts.model_dump() for name, facts in manifest.files.items()}
        signature = attestation.model_signature(manifest.name, files, read_key(key_file))
        store.put_if_absent(
            attestation_key(manifest.name, manifest.version, attestation.SIGNATURE_FILE),
            json.dumps(signature).encode(),
        )

    async def _record(self, stream: str, event: NewEvent, person: str) -> None:
        await self._db.append(stream, [event], AuditContext(user_id=person))


def _open(store: Store, request: OpenEndpoint) -> Route:
    for name in request.spec.detectors:
        find_serving_detector(name)
    registry = Registry(store)
    manifest = registry.manifest(request.spec.model)
    registry.check_servable(manifest)
    version = f"{manifest.name}@{manifest.version}"
    stable = Target(version=version, remote=request.spec.remote)
    first = Route(
        endpoint=request.name,
        generation=1,
        spec=request.spec,
        stable=stable,
        salt=request.name,
        issued_by=f"{request.issued_by}/{request.request}",
        issued_at=datetime.now(UTC),
    )

    def change(route: Route) -> Route:
        if route.canary is not None and stable != route.stable:
            raise Conflict(
                f"{request.name} has a canary on trial; abort the rollout before changing the model"
            )
        return route.model_copy(update={"spec": request.spec, "stable": stable})

    try:
        known = read_route(store, request.name)
    except NotFound:
        known = None
    if known is None or known.is_closed:
        route = create_route(store, first)
    else:
        route = change_route(store, request.name, first.issued_by, change)
    if "stable" not in registry.aliases(manifest.name).read().aliases:
        registry.aliases(manifest.name).move(
            {"stable": manifest.version}, by=request.issued_by, request=request.request
        )
    return route


def _routes(store: Store) -> list[Route]:
    found = RouteTable(store).refresh()
    return [route for route in found if not route.is_closed]


def _bases(registry: Registry, route: Route) -> set[str]:
    """Versions that adapters in service stand on."""
    found: set[str] = set()
    for version in _versions(route):
        with contextlib.suppress(NotFound):
            base = registry.manifest(version).adapter_base
            found |= {base} if base else set()
    return found


def _versions(route: Route) -> set[str]:
    return {target.version for target in (route.stable, route.canary) if target is not None}
