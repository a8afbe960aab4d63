"""LoomDB: the event store, and the door to its ledger.

    async with LoomDB() as db:
        await db.log_event(EventType.MODEL_UPDATE, {"version": "v1.1"}, context)
        async for event in db.stream_events():
            ...

It opens itself when first used. Several processes may use one database; one of them sequences.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, text

from loomos.errors import InvalidInput, NotFound
from loomos.loomdb import projections
from loomos.loomdb.appends import Append, Recorded
from loomos.loomdb.backend import open_backend
from loomos.loomdb.event_types import EventType
from loomos.loomdb.events import (
    AuditContext,
    NewEvent,
    Prepared,
    Service,
    Upcasters,
    check_name,
    prepare,
)
from loomos.loomdb.ledger import Ledger
from loomos.loomdb.metrics import Metrics, ResourceMetrics, read_metrics
from loomos.loomdb.notes import SignerKey
from loomos.loomdb.performance import Function, logged
from loomos.loomdb.projections import Projection
from loomos.loomdb.reading import EventReader
from loomos.loomdb.sequencer import LEASE_S, Sequencer
from loomos.loomdb.subjects import SubjectKeys

if TYPE_CHECKING:
    from loomos.loomdb.audit import AuditReport
    from loomos.loomdb.checkpoints import Checkpoint
    from loomos.loomdb.policies import Policy

log = logging.getLogger(__name__)

APPEND_TIMEOUT_S = 30.0
LEAD_PATIENCE_S = 5.0


class LoomDB(EventReader):
    """Events, in order, provably.

    Args:
        url: `sqlite:///PATH` or `postgresql://...`; by default what the settings say.
        may_lead: whether this process may be the one that sequences.
        log_key: signs the ledger's checkpoints while this process sequences.
        memory_file: where the signer remembers what it signed, away from the database.
        lease_s: seconds after which a silent sequencer is replaced.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        may_lead: bool = True,
        log_key: SignerKey | None = None,
        memory_file: Path | None = None,
        lease_s: float = LEASE_S,
    ) -> None:
        self.url = url or _default_url()
        self.upcasters = Upcasters()
        self._backend = open_backend(self.url)
        self._sequencer = Sequencer(self._backend, may_lead=may_lead, lease_s=lease_s)
        self._subjects = SubjectKeys(self._backend)
        self._opening = asyncio.Lock()
        self._is_open = False
        self.ledger = Ledger(self._backend, self._sequencer, log_key, memory_file)

    async def open(self) -> Self:
        """Make or migrate the tables, and begin; a second time nothing happens."""
        async with self._opening:
            if not self._is_open:
                await self._backend.migrate()
                await self._backend.start_watching()
                self._sequencer.start()
                self.ledger.start()
                self._is_open = True
        return self

    async def close(self) -> None:
        """Finish what waits, and let go."""
        if self._is_open:
            self._is_open = False
            await self._sequencer.stop()
            await self.ledger.stop()
        await self._backend.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    # --- writing ---

    async def append(
        self,
        stream: str,
        new: Sequence[NewEvent],
        context: AuditContext | Service | None = None,
        *,
        expected_version: int | None = None,
        timeout_s: float = APPEND_TIMEOUT_S,
    ) -> list[Recorded]:
        """Append events to a stream, all or none. When it returns they are on disk.

        Args:
            stream: what they are about.
            new: the events; those whose ids were appended before are left alone.
            context: who did it.
            expected_version: the version the stream must have; 0 for a new one; None for any.
            timeout_s: how long to wait.

        Raises:
            WrongVersion: the stream is at another version.
            EventIdReused: an id stands for a different event.
            LedgerUnavailable: no answer in time; appending again with the same ids is safe.
            LedgerFull: the disk is full.
            InvalidInput: a name or the data is malformed.
        """
        check_name("stream", stream)
        prepared = await self._prepare([(stream, event) for event in new], context)
        expected = None if expected_version is None else (stream, expected_version)
        return await self._sequencer.append(Append(prepared, expected), timeout_s)

    async def log_event(
        self,
        event_type: str,
        data: Mapping[str, Any],
        context: AuditContext | Service | None = None,
        *,
        stream: str | None = None,
        event_id: str | None = None,
        personal: Mapping[str, Any] | None = None,
        schema: int = 1,
    ) -> Recorded:
        """Append one event.

        Args:
            event_type: what happened.
            data: facts.
            context: who did it.
            stream: what it is about; by default the data's `resource_id` or `job_id`, else the
                event type.
            event_id: for a retry that must not append twice.
            personal: facts about the context's person; they can be erased.
            schema: version of the shape of `data`.

        Raises:
            LoomOSError: as `append`.
        """
        event = NewEvent(
            event_type=event_type,
            data=data,
            personal=personal or {},
            event_id=event_id,
            schema=schema,
        )
        (recorded,) = await self._log([event], context, stream)
        return recorded

    async def batch_log_events(
        self,
        events: Sequence[Mapping[str, Any] | NewEvent],
        context: AuditContext | Service | None = None,
        *,
        stream: str | None = None,
    ) -> list[Recorded]:
        """Append events together, all or none.

        Args:
            events: each a mapping with `event_type`, `data` and, if wanted, `event_id`,
                `personal`, `schema`.
            context: who did it.
            stream: as in `log_event`.

        Raises:
            LoomOSError: as `append`.
        """
        new = [e if isinstance(e, NewEvent) else _new_event(e, i) for i, e in enumerate(events)]
        return await self._log(new, context, stream)

    async def _log(
        self,
        new: Sequence[NewEvent],
        context: AuditContext | Service | None,
        stream: str | None,
    ) -> list[Recorded]:
        placed = [(check_name("stream", stream or _stream_of(event)), event) for event in new]
        prepared = await self._prepare(placed, context)
        return await self._sequencer.append(Append(prepared), APPEND_TIMEOUT_S)

    async def _prepare(
        self, new: Sequence[tuple[str, NewEvent]], context: AuditContext | Service | None
    ) -> list[Prepared]:
        if not self._is_open:
            await self.open()
        subject = None
        if isinstance(context, AuditContext):
            subject = await self._subjects.for_writing(context.user_id)
        return prepare(new, context, subject)

    async def is_sequenced(self) -> bool:
        """Whether some process holds the lease now."""
        await self.open()
        query = text(f"SELECT lease_until_us > {self._backend.now_us} FROM head")
        return bool(await self._backend.read(lambda c: c.execute(query).scalar()))

    # --- read models ---

    async def project(self, projection: Projection) -> int:
        """Let a projection catch up with the events that there are now.

        Returns:
            The position up to which it has come, exclusive.
        """
        await self.open()
        position = await self._backend.write(lambda c: projections.start(projection, c))
        size = await self.size()
        while position < size:
            batch = await self.query_events(after=position - 1, limit=projections.BATCH)
            position = await self._backend.write(
                partial(projections.advance, projection, position, batch)
            )
        return position

    async def rebuild(self, projection: Projection) -> int:
        """Empty a projection and apply every event again."""
        await self.open()

        def clear(connection: Connection) -> None:
            projections.start(projection, connection)
            projections.clear(projection, connection)

        await self._backend.write(clear)
        return await self.project(projection)

    def log_performance(self, function: Function) -> Function:
        """A function that is logged as a `performance_metric` each time it ends, by `logged`."""
        return logged(self, function)

    async def get_performance_metrics(self, resource_id: str) -> Metrics:
        """What the events about a resource say in numbers.

        Args:
            resource_id: a job, a model, a stream.

        Raises:
            UnknownResource: no event is about it; it is a ValueError too.
        """
        await self.project(ResourceMetrics())
        return await self._backend.glance(lambda c: read_metrics(c, resource_id))

    # --- persons ---

    async def erase_subject(self, user_id: str, by: AuditContext | Service) -> Recorded:
        """Destroy a person's key: what is personal in their events cannot be read any more.

        The events stay, and so does every hash. That it was done is an event itself.

        Args:
            user_id: whom.
            by: who does it.

        Raises:
            NotFound: no event has anything personal of them.
        """
        await self.open()
        subject = await self._subjects.find(user_id)
        if subject is None:
            raise NotFound(f"nothing personal of {user_id!r} is stored")
        reference = subject.reference
        recorded = await self.log_event(
            EventType.SUBJECT_ERASED,
            {"subject": reference},
            by,
            stream="erasures",
            event_id=f"erased:{reference}",
        )
        await self._subjects.destroy(reference)
        return recorded

    # --- backups ---

    async def backup_database(self, backup_path: str | Path) -> bool:
        """Write everything into one SQLite file, whichever database this is.

        Returns:
            True; failures raise.

        Raises:
            InvalidInput: the file is there already.
        """
        from loomos.loomdb.backups import back_up

        await self.open()
        await back_up(self._backend, Path(backup_path))
        return True

    async def restore_database(
        self,
        backup_path: str | Path,
        *,
        policy: Policy | None = None,
        accept_loss: bool = False,
    ) -> bool:
        """Bring in what a backup has and this database lacks; may be run again after a crash.

        Args:
            backup_path: a file that `backup_database` made; it is audited first.
            policy: the log's keys, with which the backup's checkpoints are verified.
            accept_loss: go on though later checkpoints were signed than the backup has.

        Returns:
            True; failures raise.

        Raises:
            HistoryChanged: the backup is damaged, or it and this database have different
                histories, or it is older than what was signed.
            LedgerUnavailable: another process sequences this database.
        """
        from loomos.loomdb.backups import restore

        await self.open()
        await restore(self, self._backend, Path(backup_path), policy, accept_loss)
        return True

    async def import_history(self, bring: Callable[[Connection, int], int]) -> None:
        """Let events come in from elsewhere with their tiles; for restoring.

        Raises:
            LedgerUnavailable: another process sequences this database.
        """
        await self.open()
        await self._sequencer.wait_to_lead(LEAD_PATIENCE_S)
        await self._sequencer.import_history(bring)

    async def audit(
        self,
        policy: Policy | None = None,
        anchors: Sequence[Checkpoint] = (),
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> AuditReport:
        """Hash everything again and compare it with what was signed.

        Args:
            policy: the log's keys and witnesses; without one signatures are not checked.
            anchors: checkpoints known from elsewhere, which the log must extend.
            progress: called with entries hashed and entries in all.
        """
        from loomos.loomdb.audit import audit

        await self.open()
        return await self._backend.read(lambda c: audit(c, policy, anchors, progress))


def _default_url() -> str:
    from loomos.settings import load_settings

    return load_settings().loomdb.url


def _stream_of(event: NewEvent) -> str:
    named = event.data.get("resource_id") or event.data.get("job_id")
    return str(named) if named else str(event.event_type)


def _new_event(content: Mapping[str, Any], index: int) -> NewEvent:
    unknown = sorted(set(content) - set(NewEvent._fields))
    if unknown or "event_type" not in content:
        wrong = f"{', '.join(unknown)} not known" if unknown else "event_type is missing"
        known = ", ".join(NewEvent._fields)
        raise InvalidInput(f"events.{index}: {wrong}; an event has {known}")
    return NewEvent(**content)
