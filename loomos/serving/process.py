"""A serving process: obeys route rows, holds versions, answers, says how it is.

It needs the store and nothing else; Temporal and the gateway may be away for as long as they like.
SIGTERM drains it: it takes no more requests, finishes those it has, and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
import uuid
from pathlib import Path

import uvicorn

from loomos.errors import InvalidInput, LoomOSError
from loomos.jobs.serving import ServerStatus
from loomos.provenance.dsse import parse_public
from loomos.security.tokens import read_key
from loomos.serving.app import create_app
from loomos.serving.engine_process import EngineOptions, prepare
from loomos.serving.hosting import ModelHost, in_own_process
from loomos.serving.outcomes import RecordWriters, now
from loomos.serving.service import Service
from loomos.serving.table import RouteTable
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import server_key

log = logging.getLogger(__name__)

POLL_S = 0.2
"""How often route rows are looked for."""
FLUSH_S = 0.2
"""How often outcomes are written."""
SAY_S = 1.0
"""How often the server says how it is, if nothing changes."""
RETRY_LOAD_S = 10.0
"""When a version that could not be loaded is tried again."""
TIDY_S = 600.0
"""How often files of models that nobody serves any more are looked for."""


class ServingProcess:
    """One server, from start to drain."""

    def __init__(self, settings: Settings, store: Store) -> None:
        chosen = settings.serving
        if chosen.public_key_file is None:
            raise InvalidInput(
                "a server needs serving.public_key_file (LOOMOS_SERVING__PUBLIC_KEY_FILE): the PEM "
                "of the key that signs models; `loomos up` writes one"
            )
        self._store, self._settings = store, chosen
        self._incarnation = uuid.uuid4().hex[:8]
        self._cached_s = settings.retention.caches.total_seconds()
        folder = chosen.cache_dir or Path(tempfile.gettempdir()) / "loomos-models"
        folder.mkdir(parents=True, exist_ok=True)
        host = ModelHost(
            store,
            parse_public(chosen.public_key_file.read_text()),
            folder,
            in_own_process(
                EngineOptions(
                    max_batch=chosen.max_batch,
                    batch_wait_s=chosen.batch_wait_ms / 1000,
                    threads=chosen.threads,
                )
            ),
        )
        self._records = RecordWriters(store, f"{chosen.id}-{self._incarnation}")
        self.service = Service(
            RouteTable(store),
            host,
            self._records,
            chosen.id,
            max_batch=chosen.max_batch,
            remote_keys=chosen.remotes,
        )
        key = settings.auth.signing_key_file
        if key is None:
            log.warning("no auth.signing_key_file: everyone who reaches this server may ask it")
        self.app = create_app(self.service, read_key(key) if key else None)
        self._changed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until asked to stop, then drain."""
        config = uvicorn.Config(
            self.app,
            host=self._settings.host,
            port=self._settings.port,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        # uvicorn would take SIGTERM for itself; this process drains first.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        serving = asyncio.create_task(server.serve())
        # Only who listens says so: else requests, with tokens, would go to who has the port.
        while not (server.started or serving.done()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        loops = [
            asyncio.create_task(loop)
            for loop in (self._obey(), self._hold(), self._flush(), self._say(), self._tidy())
        ]
        log.info("server %s at %s", self._settings.id, self._settings.advertised)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, serving, *loops], return_when="FIRST_COMPLETED")
        await self._drain(server, serving)
        for task in (*loops, stopping):
            task.cancel()
        for result in await asyncio.gather(*loops, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _drain(self, server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
        self.service.is_draining = True
        self._changed.set()
        deadline = time.monotonic() + self._settings.drain_s
        while not self.service.is_idle and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        server.should_exit = True
        await serving
        await asyncio.to_thread(self.service.host.close)
        await self.service.close()
        with contextlib.suppress(LoomOSError):
            await asyncio.to_thread(self._records.flush)
            await asyncio.to_thread(self._store.delete, [server_key(self._settings.id)])

    # --- loops ---

    async def _obey(self) -> None:
        """Follow the route rows; while the store is away the rows known hold, leases lapse."""
        while True:
            try:
                changed = await asyncio.to_thread(self.service.table.refresh)
            except LoomOSError as error:
                log.warning("cannot read routes: %s", error)
                changed = []
            if changed:
                self._changed.set()
            await asyncio.sleep(POLL_S)

    async def _hold(self) -> None:
        """Load what the rows name, let go of the rest."""
        known: set[str] = set()
        tried_at = 0.0
        while not self.service.is_draining:
            wanted = self.service.wanted_versions()
            failed = self.service.host.failed
            again = bool(failed) and time.monotonic() - tried_at > RETRY_LOAD_S
            if wanted != known or again or self.service.host.has_work:
                if again:
                    failed.clear()
                known, tried_at = wanted, time.monotonic()
                await asyncio.to_thread(self.service.host.hold, wanted)
                self._changed.set()
            await asyncio.sleep(POLL_S)

    async def _tidy(self) -> None:
        """Remove files of models that have not been served for long."""
        while True:
            await asyncio.to_thread(self.service.host.sweep, self._cached_s)
            await asyncio.sleep(TIDY_S)

    async def _flush(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._records.flush)
            except LoomOSError as error:
                log.warning("outcomes wait: %s", error)
            await asyncio.sleep(FLUSH_S)

    async def _say(self) -> None:
        """Write how this server is, at once when something changed."""
        while True:
            self._changed.clear()
            service = self.service
            status = ServerStatus(
                server_id=self._settings.id,
                incarnation=self._incarnation,
                url=self._settings.advertised,
                at=now(),
                is_draining=service.is_draining,
                loaded=service.host.loaded,
                failed=dict(service.host.failed),
                goldens=dict(service.host.goldens),
                generations={n: r.generation for n, r in service.table.routes.items()},
                waiting={name: count for name, count in service.running.items() if count},
            )
            body = status.model_dump_json().encode()
            try:
                await asyncio.to_thread(self._store.put, server_key(self._settings.id), body)
            except LoomOSError as error:
                log.warning("cannot say how I am: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAY_S):
                    await self._changed.wait()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run a serving process with these settings until asked to stop."""
    await asyncio.to_thread(prepare)
    process = ServingProcess(settings, open_store(settings.storage))
    await process.run(stop)
