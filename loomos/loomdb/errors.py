"""What can go wrong with events and the ledger.

LoomOSError
├── WrongVersion            409  a stream is not at the version that the writer expected
├── EventIdReused           409  an event id was used before for something else
├── LedgerUnavailable       503  the database or its sequencer cannot be reached  (retryable)
├── LedgerFull              507  the disk is full; nothing was written            (retryable)
└── VerificationFailed      422  a proof, signature or history does not hold
    ├── FormatInvalid            text that should be a note, checkpoint, bundle or policy is not
    ├── ProofInvalid             a Merkle proof does not verify
    ├── SignatureInvalid         a known key's signature is wrong or missing
    ├── QuorumMissing            too few witnesses have cosigned
    └── HistoryChanged           the log is not an extension of what was signed before
"""

from __future__ import annotations

from loomos.errors import Conflict, LoomOSError, Unavailable


class WrongVersion(Conflict):
    """A stream is not at the version that the writer expected."""

    title = "Wrong version"


class EventIdReused(Conflict):
    """An event id was used before for another event."""

    title = "Event id reused"


class LedgerUnavailable(Unavailable):
    """The database, or the process that sequences it, cannot be reached now."""


class LedgerFull(LoomOSError):
    """The database has no space left; nothing was written."""

    retryable = True
    status = 507
    title = "Ledger full"


class VerificationFailed(LoomOSError):
    """Something that was to be verified does not hold. Root of what any check raises."""

    status = 422
    title = "Verification failed"


class FormatInvalid(VerificationFailed):
    """Text that should be a note, checkpoint, bundle, policy or key is malformed."""


class ProofInvalid(VerificationFailed):
    """A Merkle proof does not verify."""


class SignatureInvalid(VerificationFailed):
    """A signature of a known key is wrong, or the one that is needed is missing."""


class QuorumMissing(VerificationFailed):
    """Too few of the policy's witnesses have cosigned."""


class HistoryChanged(VerificationFailed):
    """The log does not extend what was signed or cosigned before."""
