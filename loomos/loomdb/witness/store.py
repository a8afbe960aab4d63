"""What a witness knows: the newest checkpoint of each log it cosigned. SQLite, one row per log."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loomos.errors import NotFound
from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.errors import FormatInvalid, HistoryChanged, ProofInvalid
from loomos.loomdb.merkle import EMPTY_ROOT, verify_consistency
from loomos.loomdb.notes import Note, Signature, SignerKey, VerifierKey, verify_note

MOST_EVIDENCE = 1000
"""Files kept at most, as anyone who holds the log's key can make more."""


class StaleSize(Exception):
    """The caller does not know the size that was cosigned last."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the newest cosigned checkpoint has {size} entries")
        self.size = size


class Witness:
    """Checks checkpoints and cosigns them.

    Args:
        path: its database.
        keys: its signer keys, of cosignature types.
        logs: verifier keys of the logs it serves, each known by its name.
        evidence: folder for proof of misbehaviour.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[SignerKey],
        logs: Sequence[VerifierKey],
        evidence: Path,
    ) -> None:
        self._path, self._keys, self._evidence = path, keys, evidence
        self._logs: dict[str, list[VerifierKey]] = {}
        for key in logs:
            self._logs.setdefault(key.name, []).append(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS logs "
                "(origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, "
                "note TEXT NOT NULL) STRICT"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()

    def add_checkpoint(self, old_size: int, proof: Sequence[bytes], note: Note) -> list[Signature]:
        """Cosign a checkpoint that extends the one cosigned before.

        Checking and storing are one transaction, on disk before the cosignature leaves.

        Args:
            old_size: size that the caller believes was cosigned last; 0 for none.
            proof: consistency proof from there.
            note: the checkpoint, signed by the log.

        Raises:
            NotFound: the log is not known here.
            SignatureInvalid: none of its keys signed.
            FormatInvalid: the old size is larger than the new one.
            StaleSize: another size was cosigned last.
            HistoryChanged: the same size with another root; evidence is kept.
            ProofInvalid: the proof does not hold; evidence is kept.
        """
        checkpoint = Checkpoint.parse_text(note.text)
        keys = self._logs.get(checkpoint.origin)
        if keys is None:
            raise NotFound(f"no log {checkpoint.origin!r} here")
        verify_note(note, keys)
        if old_size > checkpoint.size:
            raise FormatInvalid(f"old size {old_size} is larger than {checkpoint.size}")
        with self._transaction() as connection:
            known = connection.execute(
                "SELECT size, root, note FROM logs WHERE origin = ?", (checkpoint.origin,)
            ).fetchone() or (0, EMPTY_ROOT, "")
            try:
                self._check(checkpoint, old_size, proof, known[0], known[1])
            except (HistoryChanged, ProofInvalid) as error:
                self._keep_evidence(error, known[2], old_size, proof, note)
                raise
            connection.execute(
                "INSERT INTO logs VALUES (?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE "
                "SET size = excluded.size, root = excluded.root, note = excluded.note",
                (checkpoint.origin, checkpoint.size, checkpoint.root, note.encode()),
            )
        now = int(time.time())
        return [key.sign(note.text, now) for key in self._keys]

    @staticmethod
    def _check(
        checkpoint: Checkpoint, old_size: int, proof: Sequence[bytes], size: int, root: bytes
    ) -> None:
        if checkpoint.size == size == old_size and checkpoint.root != root:
            raise HistoryChanged(f"another checkpoint of size {size} was cosigned before")
        if old_size != size:
            raise StaleSize(size)
        if old_size == 0:
            # Nothing precedes it, so there is nothing to prove (RFC 6962 has no such proof).
            if proof:
                raise ProofInvalid("the proof from size 0 must be empty")
            if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
                raise ProofInvalid("the root of an empty log is wrong")
            return
        verify_consistency(old_size, checkpoint.size, proof, root, checkpoint.root)

    def newest(self, origin: str) -> Note:
        """The newest checkpoint cosigned for a log, cosigned again now.

        Raises:
            NotFound: none was.
        """
        with self._transaction() as connection:
            row = connection.execute("SELECT note FROM logs WHERE origin = ?", (origin,)).fetchone()
        if row is None:
            raise NotFound(f"no checkpoint of {origin!r} was cosigned here")
        note = Note.parse(row[0])
        now = int(time.time())
        return note.with_signatures(key.sign(note.text, now) for key in self._keys)

    def _keep_evidence(
        self, error: Exception, known: str, old_size: int, proof: Sequence[bytes], note: Note
    ) -> None:
        """Two notes that one key signed and that cannot both be true convict the log."""
        self._evidence.mkdir(parents=True, exist_ok=True)
        content = (
            f"{error}\n\n=== cosigned before ===\n{known}\n"
            f"=== refused now, with a proof of {len(proof)} hashes from size {old_size} ===\n"
            f"{note.encode()}"
        )
        name = f"{hashlib.sha256((known + note.encode()).encode()).hexdigest()[:16]}.txt"
        if len(list(self._evidence.iterdir())) < MOST_EVIDENCE:
            (self._evidence / name).write_text(content, encoding="utf-8")
