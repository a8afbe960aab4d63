"""The ledger over the events: signed checkpoints, proofs, cosignatures.

While its process sequences and holds the log's key, the ledger signs a checkpoint whenever events
were added, at most once a second. The signer remembers in a file of its own what it signed last
and refuses to sign anything that does not extend it: a database restored from an older backup
would else become a second history.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, select, text

from loomos.errors import NotFound
from loomos.loomdb.backend import Backend, wait_for_ring
from loomos.loomdb.bundles import ProofBundle
from loomos.loomdb.checkpoints import Checkpoint, open_checkpoint
from loomos.loomdb.errors import HistoryChanged, LedgerUnavailable
from loomos.loomdb.notes import Note, Signature, SignerKey, VerifierKey, decode_text
from loomos.loomdb.policies import Policy
from loomos.loomdb.schema import checkpoints, cosignatures, events, head
from loomos.loomdb.sequencer import Sequencer
from loomos.loomdb.tree_store import Prover

log = logging.getLogger(__name__)

SIGN_INTERVAL_S = 1.0


class SignerMemory:
    """The last checkpoint a key signed, in a file beside the key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self, key: SignerKey) -> Checkpoint | None:
        """What was signed last.

        Raises:
            VerificationFailed: the file was changed.
        """
        if not self._path.exists():
            return None
        content = decode_text(self._path.read_bytes(), str(self._path))
        return open_checkpoint(content, key.verifier)[0]

    def remember(self, note: Note) -> None:
        """Write it down, durably, before anyone sees it."""
        temporary = self._path.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(note.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path)


class Ledger:
    """Checkpoints and proofs of one database."""

    def __init__(
        self,
        backend: Backend,
        sequencer: Sequencer,
        key: SignerKey | None,
        memory_file: Path | None,
    ) -> None:
        self._backend = backend
        self._sequencer = sequencer
        self._key = key
        self._memory = SignerMemory(memory_file) if memory_file else None
        self._prover = Prover()
        self._task: asyncio.Task[None] | None = None
        self._trusted_epoch: int | None = None
        self._last_size: int | None = None
        self.refusal: HistoryChanged | None = None
        """Why the key does not sign, if the history is not the one it knows."""

    @property
    def verifier(self) -> VerifierKey | None:
        """Public half of this process's log key, if it has one."""
        return None if self._key is None else self._key.verifier

    def start(self) -> None:
        """Begin to sign, if there is a key."""
        if self._key is not None and self._task is None:
            self._task = asyncio.create_task(self._keep_signing(), name="loomdb signer")

    async def stop(self) -> None:
        """Sign no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _keep_signing(self) -> None:
        while True:
            rung = self._backend.bell.listen()
            if self._sequencer.leads:
                try:
                    await self.sign()
                except HistoryChanged as error:
                    if self.refusal is None:
                        log.error("%s", error)
                    self.refusal = error
                except LedgerUnavailable:
                    log.info("does not sign: another process sequences")
                except Exception as error:
                    if not (self._backend.is_lost(error) or self._backend.is_full(error)):
                        log.exception("signing failed")
            await asyncio.sleep(SIGN_INTERVAL_S)
            await wait_for_ring(rung, SIGN_INTERVAL_S * 10)

    # --- checkpoints ---

    async def sign(self) -> Note | None:
        """Sign a checkpoint of what is committed; None without events or without a key.

        Raises:
            HistoryChanged: the database does not extend what this key signed before.
            LedgerUnavailable: this process does not sequence.
        """
        if self._key is None or not self._sequencer.leads:
            return None
        tree = self._sequencer.tree
        if tree.size == 0 or tree.size == self._last_size:
            return await self.checkpoint()
        await self._check_memory()
        checkpoint = Checkpoint(self._key.name, tree.size, tree.root())
        note = checkpoint.sign(self._key)
        if self._memory is not None:
            self._memory.remember(note)
        add = text(
            "INSERT INTO checkpoints (size, note, signed_us) VALUES (:size, :note, :now) "
            "ON CONFLICT DO NOTHING"
        )
        row = {"size": tree.size, "note": note.encode(), "now": time.time_ns() // 1000}
        await self._sequencer.fenced(lambda connection: connection.execute(add, row))
        self._last_size = tree.size
        return note

    def last_signed(self) -> Checkpoint | None:
        """What this process's key signed last, if it has one and remembers."""
        if self._memory is None or self._key is None:
            return None
        return self._memory.last(self._key)

    async def _check_memory(self) -> None:
        """Once per lease: the log must extend what was signed last."""
        if self._trusted_epoch == self._sequencer.epoch:
            return
        last = self.last_signed()
        if last is not None:
            await self.must_extend(last)
        self._trusted_epoch = self._sequencer.epoch
        self.refusal = None

    async def must_extend(self, known: Checkpoint) -> None:
        """Check that the log is an extension of a checkpoint.

        Raises:
            HistoryChanged: it is not.
        """

        def look(connection: Connection) -> tuple[int, bytes]:
            size: int = connection.execute(select(head.c.size)).scalar_one()
            root = self._prover.root(connection, known.size) if size >= known.size else b""
            return size, root

        size, root = await self._backend.glance(look)
        if size < known.size:
            raise HistoryChanged(
                f"the log has {size} entries, but its key signed {known.size}: it was truncated "
                "or restored from an older backup; restore a newer one"
            )
        if root != known.root:
            raise HistoryChanged(
                f"the first {known.size} entries are not those that the key signed; "
                "`loomos ledger audit` locates the change"
            )

    async def checkpoint(self, policy: Policy | None = None) -> Note | None:
        """The newest checkpoint with its cosignatures; with a policy, that enough cosigned."""

        def look(connection: Connection) -> Note | None:
            newest = connection.execute(
                select(checkpoints.c.size, checkpoints.c.note)
                .order_by(checkpoints.c.size.desc())
                .execution_options(yield_per=10)
            )
            for size, encoded in newest:
                note = _with_cosignatures(connection, size, encoded)
                if policy is None or policy.is_satisfied(note):
                    return note
            return None

        return await self._backend.glance(look)

    async def checkpoint_of(self, size: int) -> Note | None:
        """The checkpoint of exactly this size."""

        def look(connection: Connection) -> Note | None:
            encoded = connection.execute(
                select(checkpoints.c.note).where(checkpoints.c.size == size)
            ).scalar()
            return None if encoded is None else _with_cosignatures(connection, size, encoded)

        return await self._backend.glance(look)

    async def add_cosignatures(self, size: int, signatures: Sequence[Signature]) -> None:
        """Keep cosignatures of a checkpoint. They must have been verified."""
        add = text(
            "INSERT INTO cosignatures (size, key, line) VALUES (:size, :key, :line) "
            "ON CONFLICT DO NOTHING"
        )
        rows = [
            {"size": size, "key": f"{s.name}+{s.key_id.hex()}", "line": s.line()}
            for s in signatures
        ]
        if rows:
            await self._backend.write(lambda connection: connection.execute(add, rows))

    # --- proofs ---

    async def root(self, size: int) -> bytes:
        """Root of the tree over the first `size` events."""
        return await self._backend.glance(lambda c: self._prover.root(c, size))

    async def inclusion_proof(self, position: int, size: int) -> tuple[bytes, ...]:
        """Proof that an event is in the tree over the first `size` events.

        Raises:
            ProofInvalid: it is not.
        """
        return await self._backend.glance(lambda c: self._prover.inclusion(c, position, size))

    async def consistency_proof(self, old: int, new: int) -> tuple[bytes, ...]:
        """Proof that the first `old` events are a prefix of the first `new`.

        Raises:
            ProofInvalid: the sizes make no sense.
        """
        return await self._backend.glance(lambda c: self._prover.consistency(c, old, new))

    async def prove(self, position: int, policy: Policy | None = None) -> ProofBundle:
        """An offline proof that an event is in the log.

        Args:
            position: which event.
            policy: with one, the newest checkpoint that enough witnesses cosigned is used.

        Raises:
            NotFound: there is no such event, or no such checkpoint covers it yet.
        """
        note = await self.checkpoint(policy)
        size = Checkpoint.parse_text(note.text).size if note else 0
        if note is None or position >= size:
            query = select(events.c.position).where(events.c.position == position)
            if await self._backend.read(lambda c: c.execute(query).one_or_none()) is None:
                raise NotFound(f"no event at position {position}")
            raise NotFound(
                f"no checkpoint covers position {position} yet; the newest has {size} entries"
            )
        return ProofBundle(position, await self.inclusion_proof(position, size), note)


def _with_cosignatures(connection: Connection, size: int, encoded: str) -> Note:
    lines = connection.execute(
        select(cosignatures.c.line).where(cosignatures.c.size == size).order_by(cosignatures.c.key)
    )
    return Note.parse(encoded).with_signatures(
        Signature.parse(line.rstrip("\n")) for line in lines.scalars()
    )
