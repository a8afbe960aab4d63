"""One bounded part of a collection: what is old enough, and needed by nobody, goes.

Each part can be done again at any line: it looks at the store as it is. What refers is deleted
before what it names, so a part that is cut leaves garbage for the next, never a hole.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from loomos.errors import NotFound
from loomos.jobs.retention import Sweepable, SweepRequest, Swept
from loomos.jobs.uploads import UploadRecord
from loomos.retention.references import referenced_keys
from loomos.serving.outcomes import was_read
from loomos.settings import RetentionSettings
from loomos.storage import ObjectInfo, Store
from loomos.storage.layout import (
    BLOBS_PREFIX,
    CONTINUAL_PREFIX,
    JOBS_PREFIX,
    OUTCOMES_PREFIX,
    SAMPLES_PREFIX,
    SERVERS_PREFIX,
    SHARDS_PREFIX,
    UPLOAD_USES_PREFIX,
    UPLOADS_PREFIX,
    checkpoints_prefix,
    job_prefix,
    outcomes_prefix,
    parse_checkpoint_manifest,
    parse_fence,
    retired_key,
    retired_prefix,
    samples_prefix,
    trial_state_key,
)

JOBS_AT_ONCE = 200
"""Jobs that one part looks at."""
KEYS_AT_ONCE = 5000
"""Objects that one part looks at, where they are not of jobs."""
SERVERS_KEPT = timedelta(hours=24)

_TRIAL = re.compile(r"^(.+)-t[0-9]+(-r[0-9]+)?$")


@dataclass(frozen=True, kw_only=True)
class Life:
    """What Temporal knows of a run."""

    lives: bool
    """Whether it goes on; a paused run does."""
    completed: bool = False
    """Whether it ended well."""
    ended_at: datetime | None = None
    """When it ended."""


class Lives(Protocol):
    """Whether runs go on, as Temporal says; asked again right before anything is deleted."""

    async def of(self, run_id: str) -> Life | None:
        """A run; None if Temporal has forgotten it."""

    async def verifications(self) -> int:
        """How many verifications go on."""

    async def rollout(self, endpoint: str) -> bool:
        """Whether a rollout goes on at an endpoint."""

    async def unread(self, endpoint: str) -> list[dict[str, str]]:
        """How far each schedule at an endpoint has read its samples: newest key by server."""

    async def unmarked(self) -> int:
        """Runs that go on and may read blobs without having said which."""


class Sweeper:
    """Carries out the parts of a collection."""

    def __init__(
        self,
        store: Store,
        rules: RetentionSettings,
        lives: Lives,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store, self._rules, self._lives, self._say = store, rules, lives, say

    async def sweep(self, request: SweepRequest) -> Swept:
        """Go through one part of a class."""
        match request.what:
            case Sweepable.CHECKPOINTS | Sweepable.RECORDS:
                return await self._jobs(request)
            case Sweepable.ANSWERS:
                if await self._lives.verifications():
                    return Swept(held="a verification goes on, which may use old answers")
                return await self._old(request, SHARDS_PREFIX, self._rules.answers)
            case Sweepable.OUTCOMES:
                return await self._outcomes(request)
            case Sweepable.SERVERS:
                return await self._old(request, SERVERS_PREFIX, SERVERS_KEPT)
            case Sweepable.UPLOADS:
                return await self._uploads(request)
            case Sweepable.DATA:
                return await self._unreferenced(request, CONTINUAL_PREFIX, self._rules.records)
            case Sweepable.BLOBS:
                return await self._unreferenced(request, BLOBS_PREFIX, self._rules.blobs)

    # --- jobs ---

    async def _jobs(self, request: SweepRequest) -> Swept:
        ids = await asyncio.to_thread(self._store.children, JOBS_PREFIX)
        ids = [name.rstrip("/") for name in ids if name.endswith("/")]
        later = [job_id for job_id in ids if job_id > request.after]
        objects = size = 0
        for job_id in later[:JOBS_AT_ONCE]:
            self._say(f"{request.what}: {job_id}")
            items = await self._garbage_of(job_id, request.what)
            if items and not request.dry_run:
                life = await self._life(job_id)
                if life is not None and life.lives:  # it was started again meanwhile
                    continue
                await asyncio.to_thread(self._delete_of_job, job_id, items, request.what)
            objects += len(items)
            size += sum(item.size_bytes for item in items)
        more = len(later) > JOBS_AT_ONCE
        return Swept(
            objects=objects, size_bytes=size, next=later[JOBS_AT_ONCE - 1] if more else None
        )

    async def _life(self, job_id: str) -> Life | None:
        """A job's life; a trial's is that of its experiment while that goes on."""
        own = await self._lives.of(job_id)
        trial = _TRIAL.match(job_id)
        if trial is None or (own is not None and own.lives):
            return own
        experiment = await self._lives.of(trial[1])
        if experiment is not None and (experiment.lives or own is None):
            return experiment
        return own

    async def _garbage_of(self, job_id: str, what: Sweepable) -> list[ObjectInfo]:
        life = await self._life(job_id)
        if life is not None and life.lives:
            return []
        items = await asyncio.to_thread(self._items, job_id)
        newest = max((item.modified_at for item in items), default=datetime.now(UTC))
        ended_at = life.ended_at if life is not None and life.ended_at else newest
        age = datetime.now(UTC) - ended_at
        if what == Sweepable.RECORDS:
            if age < self._rules.records:
                return []
            # Fences of what may be run again stay, so that its generations go on counting.
            return [i for i in items if life is None or parse_fence(i.key) is None]
        completed = life is not None and life.completed
        kept = self._rules.checkpoints if completed else self._rules.failed_checkpoints
        if age < kept:
            return []
        return [item for item in items if _is_checkpoint(item.key, job_id)]

    def _items(self, job_id: str) -> list[ObjectInfo]:
        kept = retired_prefix(job_id)
        return [i for i in self._store.objects(job_prefix(job_id)) if not i.key.startswith(kept)]

    def _delete_of_job(self, job_id: str, items: list[ObjectInfo], what: Sweepable) -> None:
        """Manifests of checkpoints go aside first, then away, and shards after them."""
        manifests = [item.key for item in items if parse_checkpoint_manifest(item.key)]
        for key in manifests:
            ref = parse_checkpoint_manifest(key)
            assert ref is not None
            try:
                self._store.put(retired_key(job_id, *ref), self._store.get(key))
            except NotFound:  # a collection beside this one was faster
                continue
        self._store.delete(manifests)
        gone = set(manifests)
        self._delete(item.key for item in items if item.key not in gone)

    # --- what is old ---

    async def _old(self, request: SweepRequest, prefix: str, kept: timedelta) -> Swept:
        cut = datetime.now(UTC) - kept
        return await asyncio.to_thread(
            self._page, request, prefix, lambda item: item.modified_at < cut
        )

    def _page(
        self, request: SweepRequest, prefix: str, is_garbage: Callable[[ObjectInfo], bool]
    ) -> Swept:
        """Delete what is garbage of the next objects below a prefix."""
        page = list(itertools.islice(self._store.objects(prefix, request.after), KEYS_AT_ONCE))
        self._say(f"{request.what}: {len(page)} objects")
        doomed = [item for item in page if is_garbage(item)]
        if not request.dry_run:
            self._delete(item.key for item in doomed)
        return Swept(
            objects=len(doomed),
            size_bytes=sum(item.size_bytes for item in doomed),
            next=page[-1].key if len(page) == KEYS_AT_ONCE else None,
        )

    async def _outcomes(self, request: SweepRequest) -> Swept:
        """Old outcomes and samples of each endpoint, gone ones too, one endpoint a part."""

        def look() -> set[str]:
            return {*self._store.children(OUTCOMES_PREFIX), *self._store.children(SAMPLES_PREFIX)}

        names = sorted(name.rstrip("/") for name in await asyncio.to_thread(look))
        later = [name for name in names if name > request.after]
        if not later:
            return Swept()
        endpoint, now = later[0], datetime.now(UTC)
        self._say(f"{request.what}: {endpoint}")
        held = "" if not await self._lives.rollout(endpoint) else f"{endpoint} is in a rollout"
        cursors = await self._lives.unread(endpoint)

        def doomed() -> Iterator[ObjectInfo]:
            if not held:
                for item in self._store.objects(outcomes_prefix(endpoint)):
                    if now - item.modified_at >= self._rules.outcomes:
                        yield item
            for item in self._store.objects(samples_prefix(endpoint)):
                is_old = now - item.modified_at >= self._rules.samples
                if is_old and all(was_read(item.key, cursor) for cursor in cursors):
                    yield item

        found = await asyncio.to_thread(lambda: list(doomed()))
        if not request.dry_run:
            await asyncio.to_thread(self._delete, [item.key for item in found])
        return Swept(
            objects=len(found),
            size_bytes=sum(item.size_bytes for item in found),
            next=endpoint if len(later) > 1 else None,
            held=held,
        )

    async def _uploads(self, request: SweepRequest) -> Swept:
        cut = datetime.now(UTC) - self._rules.uploads

        def work() -> Swept:
            uses = list(self._store.objects(UPLOAD_USES_PREFIX))
            recent = {use.key.removeprefix(UPLOAD_USES_PREFIX) for use in uses if not is_old(use)}
            swept = self._page(
                request,
                UPLOADS_PREFIX,
                lambda item: item.key.split("/")[1] not in recent and is_garbage(item),
            )
            if not request.dry_run:
                self._delete(use.key for use in uses if is_old(use))
            return swept

        def is_old(item: ObjectInfo) -> bool:
            return item.modified_at < cut

        def is_garbage(item: ObjectInfo) -> bool:
            if not is_old(item):
                return False
            try:
                record = UploadRecord.model_validate_json(self._store.get(item.key))
            except (NotFound, ValueError):
                return False
            return record.uploaded_at < cut

        return await asyncio.to_thread(work)

    async def _unreferenced(self, request: SweepRequest, prefix: str, kept: timedelta) -> Swept:
        """Old objects that nothing refers to. What refers is read after what is old is listed."""
        if unmarked := await self._lives.unmarked():
            return Swept(held=f"{unmarked} runs of an earlier version go on")
        cut = datetime.now(UTC) - kept

        def work() -> Swept:
            page = list(itertools.islice(self._store.objects(prefix, request.after), KEYS_AT_ONCE))
            old = [i for i in page if i.modified_at < cut and not _is_register(i.key)]
            self._say(f"{request.what}: {len(old)} are old")
            needed: Collection[str] = referenced_keys(self._store) if old else ()
            doomed = [item for item in old if item.key not in needed]
            if not request.dry_run:
                self._delete(item.key for item in doomed)
            return Swept(
                objects=len(doomed),
                size_bytes=sum(item.size_bytes for item in doomed),
                next=page[-1].key if len(page) == KEYS_AT_ONCE else None,
            )

        return await asyncio.to_thread(work)

    def _delete(self, keys: Iterable[str]) -> None:
        keys = iter(keys)
        while batch := list(itertools.islice(keys, 1000)):
            self._say(f"deleting {batch[0]}")
            self._store.delete(batch)


def _is_checkpoint(key: str, job_id: str) -> bool:
    """Checkpoints and trials' states; fences stay, so that generations go on counting."""
    if key == trial_state_key(job_id):
        return True
    return key.startswith(checkpoints_prefix(job_id)) and parse_fence(key) is None


def _is_register(key: str) -> bool:
    """What schedules remember of themselves."""
    return key.startswith(CONTINUAL_PREFIX) and "/data/" not in key
