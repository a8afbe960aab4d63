"""Side effects of continual learning: collecting samples, remembering decisions, tidying up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio import activity

from activities.failures import in_thread
from loomos.continual.memory import change_state, concluded, over_budget, read_state
from loomos.continual.samples import Sample, encode, learnable_at, mix
from loomos.errors import Conflict, InvalidInput, NotFound
from loomos.jobs.continual import (
    Collected,
    CollectRequest,
    Conclude,
    ContinualState,
    PendingMarks,
    UpdateRecord,
)
from loomos.jobs.message import Empty
from loomos.local_files import Reach
from loomos.loomdb import LoomDB, NewEvent, Service
from loomos.registry import Registry, parse_reference
from loomos.serving.outcomes import chunks_after, left_behind
from loomos.serving.table import read_route
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import continual_data_key, samples_prefix
from loomos.storage.uploads import read_uploaded, touch_upload, upload_digest

MOST_READ_BYTES = 64 * 1024 * 1024
"""Captures that are held in memory at a time; an update learns about as much at most."""

CONTROL = Service(name="control")


class ContinualActivities:
    """Activities of the control worker."""

    def __init__(self, settings: Settings, db: LoomDB) -> None:
        self._store, self._db = open_store(settings.storage), db
        self._reach = Reach.of(settings)

    @activity.defn
    async def collect_samples(self, request: CollectRequest) -> Collected:
        """Find what is new since the watermark, mix old data in, and store it.

        The watermark moves when the period is concluded, so a period that dies is made again.

        Raises:
            NotFound: there is no such endpoint.
            InvalidInput: a file cannot be read, or is no JSONL.
            InvalidData: a file may not be named.
        """
        store, reach = self._store, self._reach
        return await in_thread(lambda say: _collect(store, request, say, reach))

    @activity.defn
    async def conclude_update(self, request: Conclude) -> Empty:
        """Remember the decision, move the watermark, delete versions that are too old to keep."""
        store = self._store
        made = request.result.model if request.result else None
        record = UpdateRecord(
            update_id=request.update_id,
            at=datetime.now(UTC),
            decision=request.decision,
            reason=request.reason,
            samples=request.collected.samples,
            base=request.collected.base,
            version=f"{made.name}@{made.version}" if made else "",
            training_s=request.took.total_seconds(),
        )
        learnt = request.decision in ("promoted", "discarded")

        def work(say: Callable[[str], None]) -> list[str]:
            state = change_state(
                store, request.name, lambda state: concluded(state, record, learnt=learnt)
            )
            return _forget_old(store, state, request.keep)

        deleted = await in_thread(work)
        await self._db.append(
            f"schedule:{request.name}",
            [
                NewEvent(
                    event_type="update_concluded",
                    data={**record.model_dump(mode="json", exclude={"at"}), "deleted": deleted},
                    event_id=f"{request.update_id}/concluded",
                )
            ],
            CONTROL,
        )
        return Empty()


def _collect(
    store: Store, request: CollectRequest, say: Callable[[str], None], reach: Reach
) -> Collected:
    spec = request.spec
    state = read_state(store, request.name)
    reason = over_budget(state, spec.budget, datetime.now(UTC))
    if reason:
        return Collected(reason=reason)
    say("collecting")
    new, marks = _new_samples(store, request, state, reach)
    is_enough = len(new) >= spec.collect.min_samples or _size(new) >= MOST_READ_BYTES
    if not is_enough:
        return Collected(
            reason=f"{len(new)} new samples; {spec.collect.min_samples} are worth an update",
            samples=len(new),
        )
    old = _replayed(store, spec.replay.file, reach) if spec.replay else []
    ratio = spec.replay.ratio if spec.replay else 0.0
    mixed = mix(new, old, ratio, request.update_id)
    content = encode(mixed)
    key = continual_data_key(request.name, hashlib.sha256(content).hexdigest())
    store.put_if_absent(key, content)
    route = read_route(store, spec.endpoint)
    change_state(
        store,
        request.name,
        lambda state: state.model_copy(update={"pending": {request.update_id: marks}}),
    )
    return Collected(
        samples=len(new),
        replayed=len(mixed) - len(new),
        dataset=f"{store.url.removeprefix('file://')}/{key}",
        model=route.stable.version.partition("@")[0],
        base=route.stable.version,
    )


def _replayed(store: Store, file: str, reach: Reach) -> list[dict[str, Any]]:
    """Old samples, of an upload or a file."""
    digest = upload_digest(file)
    if digest is None:
        return _read_lines(reach.open(file.removeprefix("file://"), "replay.file"))[0]
    touch_upload(store, digest)
    return _parsed(read_uploaded(store, file, "replay.file"), "replay.file")


def _new_samples(
    store: Store, request: CollectRequest, state: ContinualState, reach: Reach
) -> tuple[list[Sample], PendingMarks]:
    """At most `max_samples`, and marks that stand before whatever is left for the next period."""
    collect = request.spec.collect
    found: list[Sample] = []
    marks = PendingMarks(cursors=state.cursors, offsets=state.offsets, taken=state.taken)
    is_more, enough = collect.captures, min(collect.min_samples, collect.max_samples)
    while is_more and len(found) < enough and _size(found) < MOST_READ_BYTES:
        more, marks, is_more = _captured(store, request, marks, collect.max_samples - len(found))
        found += more
    offsets = dict(state.offsets)
    for file in collect.files:
        room = collect.max_samples - len(found)
        path = reach.open(file.removeprefix("file://"), "collect.files")
        lines, offsets[file] = _read_lines(path, offsets.get(file, 0), room)
        found += lines
    return found, marks.model_copy(update={"offsets": offsets})


def _size(samples: list[Sample]) -> int:
    return len(encode(samples))


def _captured(
    store: Store, request: CollectRequest, marks: PendingMarks, most: int
) -> tuple[list[Sample], PendingMarks, bool]:
    """What the endpoint captured since the marks, as far as memory allows.

    Args:
        store: where it is.
        request: what is wanted.
        marks: where to go on.
        most: samples to return at most.

    Returns:
        The samples, marks behind them, and whether there may be more to read.
    """
    collect = request.spec.collect
    records: list[dict[str, Any]] = []
    ends: list[tuple[str, str, int]] = []
    prefix = samples_prefix(request.spec.endpoint)
    begun: set[str] = set()
    size_bytes = 0
    began, unread = datetime.now(UTC), ""
    for writer, chunk in chunks_after(store, prefix, marks.cursors):
        first = 0 if writer in begun else marks.taken.get(writer, 0)
        begun.add(writer)
        for number, record in enumerate(chunk.records[first:], start=first + 1):
            records.append(record)
            is_last = number == len(chunk.records)
            ends.append((writer, chunk.key if is_last else "", 0 if is_last else number))
        size_bytes += chunk.size_bytes
        if len(records) >= 10 * collect.max_samples or size_bytes >= MOST_READ_BYTES:
            unread = writer
            break
    samples = learnable_at(records, collect)
    left = samples[most:]
    cursors, taken = dict(marks.cursors), dict(marks.taken)
    for writer, key, count in ends[: left[0][0] if left else len(ends)]:
        cursors |= {writer: key} if key else {}
        taken[writer] = count
    if left:
        unread = ends[left[0][0]][0]
    cursors = left_behind(cursors, began, unread)
    found = [sample for _, sample in samples[:most]]
    taken = {writer: count for writer, count in taken.items() if count}
    behind = marks.model_copy(update={"cursors": cursors, "taken": taken})
    return found, behind, bool(unread)


def _read_lines(
    file: Path, offset: int = 0, most: int | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Whole lines of a JSONL file after an offset, and where those that were read end."""
    found: list[dict[str, Any]] = []
    began = offset
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            for number, line in enumerate(opened, start=1):
                if not line.endswith(b"\n") or (most is not None and len(found) >= most):
                    break
                try:
                    found.append(json.loads(line))
                except ValueError:
                    raise InvalidInput(
                        f"{file}: line {number} after byte {began} is not JSON"
                    ) from None
                offset += len(line)
    except OSError as error:
        raise InvalidInput(f"collect.files: {file} cannot be read: {error.strerror}") from None
    return found, offset


def _parsed(content: bytes, name: str) -> list[dict[str, Any]]:
    """The lines of JSONL content."""
    found: list[dict[str, Any]] = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise InvalidInput(f"{name}: line {number} is not JSON") from None
    return found


def _forget_old(store: Store, state: ContinualState, keep: int) -> list[str]:
    """Delete versions of updates but the newest, unless an alias or an endpoint has them."""
    made = [update.version for update in state.updates if update.version]
    deleted: list[str] = []
    registry = Registry(store)
    for version in made[:-keep]:
        try:
            registry.delete(parse_reference(version))
        except (NotFound, Conflict):  # gone already, or in use
            continue
        deleted.append(version)
    return deleted
