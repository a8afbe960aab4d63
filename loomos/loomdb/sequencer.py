"""The sequencer: gives events their positions, one process at a time, many appends per commit.

Of all processes that may lead, one holds the lease: the epoch in the row `head`. Each commit moves
that row `WHERE epoch = mine`, so a process that slept past its lease and wakes changes nothing.
Positions are dense and in commit order, because only the holder of the row's lock gives them.
The other processes put their appends into `inbox`; the leader takes them from there and answers in
the same commit. A leader that dies frees the alive lock, so the next one need not wait for the
lease to end; one that is only stopped keeps that lock and loses the lease.

The tree in memory moves on only when its commit has succeeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from loomos.loomdb.appends import Append, Recorded, encode_outcome
from loomos.loomdb.backend import Backend, wait_for_ring
from loomos.loomdb.errors import HistoryChanged, LedgerFull, LedgerUnavailable
from loomos.loomdb.forwarding import Forwarder
from loomos.loomdb.merkle import Tile, Tree
from loomos.loomdb.planning import Plan, Planner
from loomos.loomdb.schema import head, inbox, tiles
from loomos.loomdb.tree_store import load_tree

log = logging.getLogger(__name__)

LEASE_S = 5.0
MOST_EVENTS_PER_COMMIT = 4_000
FEW = 100
"""Events that are worth the short way."""
RETRY_S = 0.2
MAIL_INTERVAL_S = 0.02
"""After an empty look into the inbox: its own commits wake the leader too, and looking costs."""
FOLLOW_POLL_S, TAKEOVER_POLL_S = 0.5, 0.25
STOP_PATIENCE_S = 10.0
INBOX_KEPT_S = 60.0
"""Answers stay in the inbox for so long."""


_UNANSWERED = (
    select(inbox.c.request_id, inbox.c.request)
    .where(inbox.c.outcome.is_(None))
    .order_by(inbox.c.submitted_us)
    .limit(MOST_EVENTS_PER_COMMIT)
)


class Fenced(Exception):
    """Another process holds the lease now."""


class Sequencer:
    """This process's part in sequencing: it leads, or hands its appends to who does."""

    def __init__(
        self,
        backend: Backend,
        *,
        may_lead: bool = True,
        lease_s: float = LEASE_S,
    ) -> None:
        self._backend = backend
        self._may_lead = may_lead
        self._lease_s = lease_s
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._epoch: int | None = None
        self._tree = Tree()
        self._planner = Planner()
        self._queue: deque[Append] = deque()
        self._forwarder = Forwarder(backend)
        self._wake = asyncio.Event()
        self._committing = asyncio.Lock()
        self._leading = asyncio.Event()
        self._has_mail = True
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._renewed_at = 0.0
        self._pruned_at = 0.0
        self._mail_at = 0.0
        self._tried_at = 0.0

    @property
    def leads(self) -> bool:
        """Whether this process holds the lease, as far as it knows."""
        return self._epoch is not None

    @property
    def tree(self) -> Tree:
        """The tree as of the last commit of this leader."""
        return self._tree

    @property
    def epoch(self) -> int | None:
        """The lease's epoch, if this process leads."""
        return self._epoch

    def start(self) -> None:
        """Begin; returns at once."""
        if self._task is None:
            self._backend.bell.add_listener(self._ring)
            self._task = asyncio.create_task(self._run(), name="loomdb sequencer")

    async def stop(self) -> None:
        """Finish what is queued, give the lease back."""
        if self._task is None:
            return
        self._stopping = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_PATIENCE_S):
                await self._task
        self._backend.bell.remove_listener(self._ring)
        for request in (*self._queue, *self._forwarder):
            request.fail(LedgerUnavailable("this process stopped; append again with the same id"))

    async def append(self, request: Append, timeout_s: float) -> list[Recorded]:
        """Append; when this returns, the events are on disk and in the ledger.

        Raises:
            WrongVersion: the stream is not at the expected version; nothing was appended.
            EventIdReused: an event id stands for something else; nothing was appended.
            LedgerFull: the disk is full; nothing was appended.
            LedgerUnavailable: no answer in time; append again with the same ids.
        """
        self._queue.append(request)
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(request.outcome)
        except TimeoutError:
            raise LedgerUnavailable(
                f"the ledger did not answer within {timeout_s:g} s; whether the events were "
                "appended is unknown, appending them again with the same ids is safe"
            ) from None

    def _ring(self) -> None:
        self._has_mail = True
        self._wake.set()

    async def fenced(self, work: Callable[[Connection], object]) -> None:
        """A write of the leader's own; nothing happens if it no longer leads.

        Raises:
            LedgerUnavailable: this process does not lead.
        """

        def write(connection: Connection) -> None:
            if self._epoch is None:
                raise Fenced
            self._keep_lease(connection)
            work(connection)

        try:
            await self._backend.write(write)
        except Fenced:
            raise LedgerUnavailable("another process sequences now") from None

    async def wait_to_lead(self, timeout_s: float) -> bool:
        """Wait until this process sequences; says whether it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._leading.wait()
        return self.leads

    async def import_history(self, bring: Callable[[Connection, int], int]) -> None:
        """Let events come in from elsewhere, with their tiles; nothing is appended meanwhile.

        Args:
            bring: adds some behind the given size and returns the new size; the same one if there
                are no more.

        Raises:
            LedgerUnavailable: this process does not sequence.
        """

        def write(connection: Connection) -> tuple[int, int]:
            if self._epoch is None:
                raise Fenced
            size = connection.execute(select(head.c.size)).scalar_one()
            end = bring(connection, size)
            self._move_head(connection, end)
            return size, end

        async with self._committing:
            try:
                size, end = await self._backend.write_once(write)
                while size < end:
                    size, end = await self._backend.write_once(write)
            except Fenced:
                raise LedgerUnavailable("another process sequences; stop it first") from None
            finally:
                # Some may have come in before a failure: the tree must be over what is there.
                self._planner.forget()
                self._tree = await self._backend.read(_whole_tree)
        self._backend.bell.ring()

    # --- the loop ---

    async def _run(self) -> None:
        while not (self._stopping and not self._queue):
            try:
                if self._epoch is None and not await self._acquire():
                    await self._follow()
                else:
                    await self._lead()
            except Fenced:
                log.warning("another process sequences now")
                await self._step_down()
            except Exception as error:
                await self._step_down()
                if self._backend.is_lost(error) or self._backend.is_full(error):
                    log.warning("the ledger's database does not answer: %s", error)
                else:
                    # Nothing that is queued may hang because of a defect, here or in the tables.
                    log.exception("the sequencer failed")
                    told = (
                        _foreign_row(self._tree.size)
                        if self._backend.is_duplicate(error)
                        else error
                    )
                    while self._queue:
                        self._queue.popleft().fail(told)
                await asyncio.sleep(RETRY_S)
        await self._give_back()

    async def _step_down(self) -> None:
        self._epoch = None
        self._leading.clear()
        self._planner.forget()
        await self._backend.free_alive_lock()

    # --- the lease ---

    async def _acquire(self) -> bool:
        """Take the lease if its holder is dead or late."""
        if not self._may_lead or time.monotonic() - self._tried_at < TAKEOVER_POLL_S:
            return False
        self._tried_at = time.monotonic()
        alone = await self._backend.hold_alive_lock()
        now = self._backend.now_us
        if not alone and not await self._is_late():
            return False
        late = "" if alone else f" AND lease_until_us < {now}"
        take = text(
            "UPDATE head SET epoch = epoch + 1, holder = :holder, "
            f"lease_until_us = {now} + :lease WHERE id = 1{late}"
        )

        def lead(connection: Connection) -> tuple[int, Tree] | None:
            taken = connection.execute(take, {"holder": self._holder, "lease": self._lease_us})
            if taken.rowcount != 1:
                return None
            size, epoch = connection.execute(select(head.c.size, head.c.epoch)).one()
            return epoch, load_tree(connection, size)

        try:
            found = await self._backend.write_once(lead)
        except BaseException:
            await self._backend.free_alive_lock()
            raise
        if found is None:
            return False
        epoch, self._tree = found
        self._epoch, self._has_mail = epoch, True
        self._leading.set()
        self._renewed_at = time.monotonic()
        self._planner.forget()
        log.info("sequencing from position %d, epoch %d", self._tree.size, epoch)
        return True

    async def _is_late(self) -> bool:
        query = text(f"SELECT lease_until_us < {self._backend.now_us} FROM head")
        return bool(await self._backend.read_once(lambda c: c.execute(query).scalar()))

    @property
    def _lease_us(self) -> int:
        return int(self._lease_s * 1_000_000)

    async def _give_back(self) -> None:
        if self._epoch is None:
            return
        end = update(head).where(head.c.epoch == self._epoch).values(lease_until_us=0)
        # Only a courtesy to the next one: if the database is away, the lease ends by itself.
        with contextlib.suppress(DBAPIError, OSError):
            await self._backend.write_once(lambda c: c.execute(end))
        await self._step_down()

    # --- following ---

    async def _follow(self) -> None:
        """Forward what is queued, and learn what became of what was forwarded."""
        rung = self._backend.bell.listen()
        if self._queue:
            batch = list(self._queue)
            await self._forwarder.put(batch)
            for _ in batch:
                self._queue.popleft()
        if self._forwarder:
            self._queue.extend(await self._forwarder.collect())
        if self._stopping or self._queue:
            return
        self._wake.clear()
        # With nothing to do it waits for appends, or for its turn to lead.
        if self._forwarder:
            await wait_for_ring(rung, FOLLOW_POLL_S)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_POLL_S):
                    await self._wake.wait()

    # --- leading ---

    async def _lead(self) -> None:
        """One round: commit what waits, or wait."""
        self._wake.clear()
        now = time.monotonic()
        mail_in = self._mail_at + MAIL_INTERVAL_S - now
        mail = await self._mail() if self._has_mail and mail_in <= 0 else []
        # Taken last: what was taken must be committed, put back, or told.
        batch = self._take()
        if batch or mail:
            await self._commit(batch, mail)
            return
        renew_in = self._renewed_at + self._lease_s / 3 - now
        if renew_in <= 0:
            await self._backend.write_once(self._keep_lease)
            await self._prune()
        elif not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(renew_in, mail_in) if self._has_mail else renew_in):
                    await self._wake.wait()

    def _take(self) -> list[Append]:
        batch: list[Append] = []
        count = 0
        while self._queue and count < MOST_EVENTS_PER_COMMIT:
            request = self._queue.popleft()
            if request.outcome.done():
                continue
            batch.append(request)
            count += len(request.events)
        return batch

    async def _mail(self) -> list[Append]:
        self._has_mail = False
        rows = await self._backend.glance(lambda c: c.execute(_UNANSWERED).all())
        self._mail_at = 0.0 if rows else time.monotonic()
        requests: list[Append] = []
        count = 0
        for request_id, request in rows:
            if count >= MOST_EVENTS_PER_COMMIT:
                break
            requests.append(Append.decode(request_id, request))
            count += len(requests[-1].events)
        self._has_mail = len(requests) < len(rows) or len(rows) == MOST_EVENTS_PER_COMMIT
        return requests

    async def _commit(self, batch: Sequence[Append], mail: Sequence[Append]) -> None:
        async with self._committing:
            await self._commit_now(batch, mail)

    async def _commit_now(self, batch: Sequence[Append], mail: Sequence[Append]) -> None:
        try:
            try:
                await self._write(batch, mail)
            except Exception as error:
                if not self._backend.is_duplicate(error):
                    raise
                # An id that should have been new was not: look at each.
                for request in (*batch, *mail):
                    request.doubt()
                await self._write(batch, mail)
        except BaseException as error:
            self._keep_or_fail(batch, error)
            raise

    def _keep_or_fail(self, batch: Sequence[Append], error: BaseException) -> None:
        """After a failed commit: what may be tried again waits, the rest is told."""
        if self._backend.is_full(error):
            for request in batch:
                request.fail(
                    LedgerFull("the ledger's disk is full; nothing was written. Free some space")
                )
            return
        for request in reversed(batch):
            request.doubt()
            self._queue.appendleft(request)

    async def _write(self, batch: Sequence[Append], mail: Sequence[Append]) -> None:
        """One transaction. Only after it has committed does anything in memory change."""
        plan, tree = await self._write_few(batch) if not mail else (None, self._tree)
        if plan is None:
            plan, tree = await self._write_any(batch, mail)
        self._renewed_at = time.monotonic()
        self._tree = tree
        self._planner.remember(plan)
        for request, outcome in plan.outcomes:
            request.answer(outcome)
            self._forwarder.answer(request.request_id, outcome)
        self._backend.bell.ring()

    async def _write_few(self, batch: Sequence[Append]) -> tuple[Plan | None, Tree]:
        """The short way, for what needs no look into the database; None if it does."""
        plan = None
        if sum(len(request.events) for request in batch) <= FEW:
            plan = self._planner.plan_blind(self._tree.size, batch)
        if plan is None or not plan.rows:
            return None, self._tree
        tree, full = self._tree.append(plan.leaves)
        if full:
            return None, self._tree
        assert self._epoch is not None
        if not await self._backend.append_rows(plan.rows, tree.size, self._epoch, self._lease_us):
            raise Fenced
        return plan, tree

    async def _write_any(
        self, batch: Sequence[Append], mail: Sequence[Append]
    ) -> tuple[Plan, Tree]:
        def write(connection: Connection) -> tuple[Plan, Tree]:
            plan = self._planner.plan(connection, self._tree.size, (*batch, *mail))
            tree, full = self._tree.append(plan.leaves)
            self._move_head(connection, tree.size)
            if plan.rows:
                self._backend.insert_events(connection, plan.rows)
            if full:
                _insert_tiles(connection, full)
            if mail:
                _answer_mail(connection, plan, mail)
            return plan, tree

        return await self._backend.write_once(write)

    def _move_head(self, connection: Connection, size: int | None) -> None:
        assert self._epoch is not None
        if not self._backend.move_head(connection, size, self._epoch, self._lease_us):
            raise Fenced

    def _keep_lease(self, connection: Connection) -> None:
        self._move_head(connection, None)
        self._renewed_at = time.monotonic()

    async def _prune(self) -> None:
        """Clear answered requests from the inbox, now and then."""
        if time.monotonic() - self._pruned_at < INBOX_KEPT_S:
            return
        self._pruned_at = time.monotonic()
        oldest = time.time_ns() // 1000 - int(INBOX_KEPT_S * 1_000_000)
        old = delete(inbox).where(inbox.c.outcome.is_not(None), inbox.c.submitted_us < oldest)
        await self._backend.write_once(lambda c: c.execute(old))


def _whole_tree(connection: Connection) -> Tree:
    return load_tree(connection, connection.execute(select(head.c.size)).scalar_one())


def _foreign_row(size: int) -> HistoryChanged:
    return HistoryChanged(
        f"somebody wrote into the ledger's tables: behind its {size} entries there are rows that "
        "its sequencer did not write; `loomos ledger audit` locates them"
    )


def _insert_tiles(connection: Connection, full: Sequence[Tile]) -> None:
    connection.execute(
        insert(tiles),
        [
            {"level": tile.level, "tile": tile.place, "hashes": tile.hashes, "root": tile.root}
            for tile in full
        ],
    )


def _answer_mail(connection: Connection, plan: Plan, mail: Sequence[Append]) -> None:
    answers = {request.request_id: outcome for request, outcome in plan.outcomes}
    connection.execute(
        update(inbox)
        .where(inbox.c.request_id == bindparam("of"))
        .values(outcome=bindparam("answer")),
        [{"of": r.request_id, "answer": encode_outcome(answers[r.request_id])} for r in mail],
    )
