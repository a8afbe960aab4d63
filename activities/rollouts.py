"""Side effects of a canary rollout: route rows, leases, outcomes, aliases."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError

from activities.failures import in_thread
from loomos.errors import Conflict, InvalidInput, NotFound, Unavailable
from loomos.jobs.rollouts import (
    CanaryClosed,
    CanaryOpened,
    CloseCanary,
    OpenCanary,
    SetTraffic,
    StageProgress,
    StageVerdict,
    WatchStage,
    begun,
    stage_key,
)
from loomos.jobs.serving import Route, Target
from loomos.prism.detectors import find_serving_detector
from loomos.prism.evidence import newest_verdict
from loomos.registry import Registry
from loomos.rollouts import rows
from loomos.rollouts.judge import StageJudge
from loomos.serving.outcomes import Outcome, find_ends, read_between, read_new
from loomos.serving.servers import is_alive, read_servers
from loomos.serving.table import change_route, read_route
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import outcomes_prefix

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often new outcomes are looked for."""
LOAD_PATIENCE_S = 600.0
"""How long servers may take to load a candidate."""
RENEWALS = 4
"""Times a lease is renewed within its length."""


class RolloutActivities:
    """Activities of the control worker."""

    def __init__(self, settings: Settings, client: Client) -> None:
        # Opened once: a new S3 client costs more than what a rollback may take.
        self._store, self._client = open_store(settings.storage), client

    @activity.defn
    async def open_canary(self, request: OpenCanary) -> CanaryOpened:
        """Check the candidate, write it into the row without traffic, wait until it is loaded.

        Raises:
            NotFound: there is no such endpoint or version.
            Conflict: it is not verified, another canary is on trial, or it is stable already.
            InvalidInput: a guardrail names a detector that the endpoint does not, or may not, run.
            Unavailable: it cannot be loaded.
        """
        store = self._store
        opened = await in_thread(lambda say: _open(store, request))
        deadline = time.monotonic() + LOAD_PATIENCE_S
        while True:
            waiting_for = await in_thread(lambda say: _not_ready(store, opened))
            if not waiting_for:
                return opened
            if time.monotonic() > deadline:
                raise Conflict(f"the candidate was not loaded in time: {waiting_for}")
            activity.heartbeat(waiting_for)
            await self._renew(store, request, opened)
            await asyncio.sleep(LOOK_S)

    async def _renew(self, store: Store, request: OpenCanary, opened: CanaryOpened) -> None:
        lease = request.spec.lease
        moment = datetime.now(UTC)
        route = await asyncio.to_thread(read_route, store, request.spec.endpoint)
        if route.expires_at is None or route.expires_at - moment < lease / 2:
            await in_thread(
                lambda say: change_route(
                    store,
                    request.spec.endpoint,
                    request.holder,
                    lambda route: rows.renewed(route, request.holder, lease, datetime.now(UTC)),
                )
            )

    @activity.defn
    async def set_traffic(self, request: SetTraffic) -> Route:
        """Give the canary its share.

        Raises:
            Conflict: the canary is another's.
        """
        store = self._store
        lease = timedelta(seconds=request.lease_s)

        def change(route: Route) -> Route:
            return rows.with_traffic(
                route,
                request.holder,
                request.stage,
                request.canary_bp,
                request.shadow_bp,
                lease,
                datetime.now(UTC),
            )

        return await in_thread(
            lambda say: change_route(store, request.endpoint, request.holder, change)
        )

    @activity.defn
    async def watch_stage(self, watch: WatchStage) -> StageVerdict:
        """Judge the stage's outcomes as they come, and renew the lease, until there is a verdict.

        The heartbeat carries the whole state of the judge; after a crash another worker goes on
        from it. The lease is renewed only while Temporal says that the rollout runs.
        """
        store = self._store
        prefix = outcomes_prefix(watch.spec.endpoint)
        judge = await self._judge(watch, store, prefix)
        lease = _Lease(self._client, store, watch)
        try:
            while True:
                cursors = judge.progress.cursors
                batch = await asyncio.to_thread(read_new, store, prefix, cursors)
                now = datetime.now(UTC)
                judge.progress = judge.progress.model_copy(update={"cursors": batch.cursors})
                judge.take((Outcome.model_validate(r) for r in batch.records), now)
                activity.heartbeat(judge.progress)
                verdict = judge.verdict(now)
                if verdict is not None:
                    return verdict
                await lease.renew()
                await asyncio.sleep(LOOK_S)
        except asyncio.CancelledError:
            if activity.is_worker_shutdown():
                raise
            return judge.say("interrupted", "asked to stop", datetime.now(UTC))

    async def _judge(self, watch: WatchStage, store: Store, prefix: str) -> StageJudge:
        """A judge at the beginning of the stage, or where an earlier one was."""
        details = activity.info().heartbeat_details
        progress = StageProgress.model_validate(details[0]) if details else watch.before
        if progress is None:
            key = stage_key(watch.holder, watch.stage.name)
            return StageJudge(watch, begun(watch.carried, key, datetime.now(UTC)))
        judge = StageJudge(watch, progress)
        seen = await in_thread(
            lambda say: read_between(store, prefix, progress.first_cursors, progress.cursors)
        )
        judge.remember(Outcome.model_validate(record) for record in seen)
        return judge

    @activity.defn
    async def close_canary(self, request: CloseCanary) -> CanaryClosed:
        """Take the canary out of the row and move the aliases; a retry changes nothing more."""
        store = self._store

        def change(route: Route) -> Route:
            return rows.closed(
                route,
                request.holder,
                request.version,
                promote=request.promote,
                restore=request.restore,
            )

        try:
            route = await in_thread(
                lambda say: change_route(store, request.endpoint, request.holder, change)
            )
        except NotFound:  # deleted, or never there
            return CanaryClosed()
        name, _, version = request.version.partition("@")
        changes: dict[str, str | None] = {"canary": None}
        what = "promote" if request.promote else "restore" if request.restore else "close"
        if request.promote and route.stable.version == request.version:
            changes["stable"] = version
        if request.restore is not None:
            restored, _, before = request.restore.version.partition("@")
            if restored == name:
                changes["stable"] = before
        await in_thread(
            lambda say: (
                Registry(store)
                .aliases(name)
                .move(changes, by=request.holder, request=f"{request.holder}/{what}")
            )
        )
        return CanaryClosed(
            stable=route.stable.version, generation=route.generation, issued_at=route.issued_at
        )


class _Lease:
    """Renews the canary's lease for as long as the rollout is known to run."""

    def __init__(self, client: Client, store: Store, watch: WatchStage) -> None:
        workflow_id, _, run_id = watch.holder.rpartition("/")
        self._handle = client.get_workflow_handle(workflow_id, run_id=run_id)
        self._store, self._watch = store, watch
        self._due = 0.0

    async def renew(self) -> None:
        """Renew if it is time; if Temporal does not answer the lease runs out by itself."""
        lease = self._watch.spec.lease
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + lease.total_seconds() / RENEWALS
        try:
            described = await self._handle.describe(rpc_timeout=timedelta(seconds=2))
        except RPCError as error:
            log.warning("the lease is not renewed: %s", error)
            return
        if described.status != WorkflowExecutionStatus.RUNNING:
            return
        try:
            await asyncio.to_thread(
                change_route,
                self._store,
                self._watch.spec.endpoint,
                self._watch.holder,
                lambda route: rows.renewed(route, self._watch.holder, lease, datetime.now(UTC)),
            )
        except Unavailable as error:
            log.warning("the lease is not renewed: %s", error)


def _open(store: Store, request: OpenCanary) -> CanaryOpened:
    spec = request.spec
    manifest = Registry(store).manifest(spec.model)
    version = f"{manifest.name}@{manifest.version}"
    route = read_route(store, spec.endpoint)
    for guardrail in spec.guardrails:
        if guardrail.event == "detector":
            find_serving_detector(guardrail.name)
            if guardrail.name not in route.spec.detectors:
                raise InvalidInput(
                    f"guardrails: {spec.endpoint} does not run the detector {guardrail.name!r}; "
                    "add it to the endpoint's detectors"
                )
    verdict = newest_verdict(store, version)
    if spec.require_verification and (verdict is None or verdict.verdict != "PASS"):
        found = "was not verified" if verdict is None else f"got {verdict.verdict} from Prism"
        raise Conflict(
            f"{version} {found}; run `loomos verify start {version}`, or set "
            "require_verification: false"
        )
    candidate = Target(version=version, remote=spec.remote)
    cursors = find_ends(store, outcomes_prefix(spec.endpoint))
    row = change_route(
        store,
        spec.endpoint,
        request.holder,
        lambda route: rows.opened(route, candidate, request.holder, spec.lease, datetime.now(UTC)),
    )
    Registry(store).aliases(manifest.name).move(
        {"canary": manifest.version}, by=request.holder, request=f"{request.holder}/open"
    )
    return CanaryOpened(
        version=version,
        stable=row.stable,
        route=row,
        verification=verdict.evidence_sha256 if verdict else "",
        cursors=cursors,
    )


def _not_ready(store: Store, opened: CanaryOpened) -> str:
    """Who does not hold the candidate yet; empty when all do, and all say the same.

    Raises:
        Conflict: a server cannot load it, or servers disagree on what it says.
    """
    route = opened.route
    if route.canary is None or route.canary.remote is not None:
        return ""
    holders = [
        server
        for server in read_servers(store)
        if server.server_id in route.replicas and is_alive(server)
    ]
    for server in holders:
        reason = server.failed.get(opened.version)
        if reason:
            raise Conflict(f"{server.server_id} cannot load {opened.version}: {reason}")
    said = {s.goldens[opened.version] for s in holders if opened.version in s.goldens}
    if len(said) > 1:
        raise Conflict(f"servers answer the golden prompt differently with {opened.version}")
    missing = [s.server_id for s in holders if opened.version not in s.loaded]
    if not holders:
        return "no server holds the endpoint"
    return f"{', '.join(missing)} to load it" if missing else ""
