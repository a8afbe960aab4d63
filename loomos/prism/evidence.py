"""Where verdicts are kept: the newest one of each version, and the evidence it rests on."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from loomos.storage import Store
from loomos.storage.layout import verdicts_prefix
from loomos.storage.register import Register

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]


class RecordedVerdict(BaseModel):
    """What Prism said of a version."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    version: str
    """`NAME@VERSION`."""
    weights_sha256: str
    """The weights it is about."""
    verdict: Outcome
    """Over all gating suites."""
    verification_id: str
    """The run."""
    plan_sha256: str
    """The plan, hashed before the first generation."""
    evidence_sha256: str
    """The evidence."""
    evidence_key: str
    """Where the evidence is in the store."""
    at: datetime
    """When."""


def newest_verdict(store: Store, version: str) -> RecordedVerdict | None:
    """The newest verdict on `NAME@VERSION`; None if it was never verified."""
    name, _, digest = version.partition("@")
    found = Register(store, verdicts_prefix(name, digest)).read()
    return None if found is None else RecordedVerdict.model_validate_json(found.data)


def record_verdict(store: Store, verdict: RecordedVerdict) -> None:
    """Make this the newest verdict; the same run recorded twice is there once."""
    name, _, digest = verdict.version.partition("@")

    def newest(known: RecordedVerdict | None) -> RecordedVerdict:
        same = known is not None and known.verification_id == verdict.verification_id
        return known if same and known is not None else verdict

    Register(store, verdicts_prefix(name, digest)).change(RecordedVerdict, newest)
