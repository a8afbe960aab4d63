"""Every error LoomOS raises on purpose.

    LoomOSError
    ├── InvalidInput            400  what a caller sent is wrong; names the field and the fix
    │   ├── InvalidManifest     422  a manifest, with every error and its path
    │   └── TooLarge            413  more bytes than the place where they go takes
    ├── Unauthenticated         401  no token, or one that does not verify
    ├── Forbidden               403  the token lacks a scope
    ├── NotFound                404  no such job, node, artifact
    ├── Conflict                409  the state does not allow it, or a key was used before
    │   └── Stuck               409  a workflow fails at every step; it can be ended, nothing else
    ├── Overloaded              429  too many requests wait; try again soon              (retryable)
    ├── Unavailable             503  Temporal, S3 or a worker cannot be reached now     (retryable)
    └── TrainingError
        ├── InvalidData              the dataset cannot be used as written
        ├── InvalidModel             the base model or tokenizer cannot be loaded
        ├── LossDiverged             loss became NaN or infinite
        ├── CheckpointCorrupt        bytes in the store differ from the manifest's SHA-256
        └── AttemptFailed            a rank, a node or the rendezvous died              (retryable)

`retryable` says whether the same call may succeed later without a change by the caller;
`status` is the HTTP status. One place maps errors to problem+json (`api.problems`), one to
Temporal failures (`activities.failures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LoomOSError(Exception):
    """Root of every deliberate error. The message names the thing, the cause and the next step."""

    retryable: bool = False
    status: int = 500
    title: str = "LoomOS error"


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One thing wrong with one field."""

    path: str
    """Dotted path from the document's root, such as `spec.resources.nodes`."""
    message: str
    """What is wrong and what would be right."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidInput(LoomOSError):
    """What the caller sent cannot be used; `errors` names each field."""

    status = 400
    title = "Invalid input"

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.errors = list(errors)


class InvalidManifest(InvalidInput):
    """A manifest with at least one error; `errors` lists all of them."""

    status = 422
    title = "Invalid manifest"

    def __init__(self, errors: Sequence[FieldError], source: str = "manifest") -> None:
        lines = "; ".join(str(e) for e in errors)
        super().__init__(
            f"{source} has {len(errors)} error{'s' * (len(errors) != 1)}: {lines}", errors
        )


class TooLarge(InvalidInput):
    """More bytes than the place where they go takes; sending them again changes nothing."""

    status = 413
    title = "Too large"


class Unauthenticated(LoomOSError):
    """No bearer token, or one that does not verify."""

    status = 401
    title = "Not authenticated"


class Forbidden(LoomOSError):
    """The token is genuine but lacks the scope."""

    status = 403
    title = "Not allowed"


class NotFound(LoomOSError):
    """The named thing does not exist."""

    status = 404
    title = "Not found"


class Conflict(LoomOSError):
    """The thing's state does not allow this now."""

    status = 409
    title = "Conflict"


class Stuck(Conflict):
    """A workflow fails at every step that it tries; it can be looked at and ended, nothing else."""

    title = "Stuck"


class Overloaded(LoomOSError):
    """Too many requests wait already."""

    retryable = True
    status = 429
    title = "Overloaded"


class Unavailable(LoomOSError):
    """A part that LoomOS stands on cannot be reached now."""

    retryable = True
    status = 503
    title = "Unavailable"


class TrainingError(LoomOSError):
    """A training attempt cannot go on."""

    title = "Training failed"


class InvalidData(TrainingError):
    """The dataset cannot be used as it is written."""


class InvalidModel(TrainingError):
    """The base model or its tokenizer cannot be loaded."""


class LossDiverged(TrainingError):
    """The loss became NaN or infinite; the same step would give the same again."""


class CheckpointCorrupt(TrainingError):
    """A checkpoint's bytes differ from what its manifest promises."""


class AttemptFailed(TrainingError):
    """A rank, a node or the rendezvous of a gang died; a new attempt may succeed."""

    retryable = True
    status = 503


NON_RETRYABLE_TRAINING_ERRORS = [
    e.__name__ for e in (InvalidInput, InvalidData, InvalidModel, LossDiverged)
]
"""Temporal failure types after which a new attempt would only fail again."""
