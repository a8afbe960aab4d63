"""The lineage of a model version: facts of the ledger, their proofs, and whether they fit.

A lineage holds if each fact is proven to be in the log, and the facts agree with each other and
with the version's manifest: the published files, the checkpoint they came from, the leases of the
generations that made it, the inputs that were resolved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from loomos.loomdb.bundles import ProofBundle
from loomos.loomdb.errors import VerificationFailed
from loomos.loomdb.events import moment
from loomos.loomdb.policies import Policy

SUBMITTED, RESOLVED, LEASED = "job_submitted", "inputs_resolved", "lease_granted"
COMMITTED, RECOVERED, PUBLISHED = "checkpoint_committed", "run_recovered", "model_published"


class LineageFact(BaseModel):
    """One fact and its proof."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    position: int
    """Place in the ledger."""
    entry: str
    """Canonical text that the ledger hashes."""
    proof: str
    """C2SP tlog-proof."""
    by: str | None = None
    """Person or part of LoomOS that did it, if still known; not proven."""

    @property
    def content(self) -> dict[str, Any]:
        """The entry, parsed."""
        found: dict[str, Any] = json.loads(self.entry)
        return found

    @property
    def event_type(self) -> str:
        """What happened."""
        return str(self.content["type"])

    @property
    def data(self) -> dict[str, Any]:
        """What the fact says."""
        found: dict[str, Any] = self.content["data"]
        return found

    @property
    def time(self) -> datetime:
        """When it was logged."""
        return moment(self.content["time"])


class Lineage(BaseModel):
    """Everything the ledger knows of how a model version was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the model."""
    version: str
    """Of the model."""
    job_id: str
    """The job that made it."""
    manifest: str
    """The version's manifest, as it is stored."""
    facts: list[LineageFact]
    """In the ledger's order."""
    policy: str
    """C2SP policy that the server goes by. Who verifies should bring their own."""
    attestation_key: str
    """PEM of the key that signs statements, likewise."""


def check_proofs(lineage: Lineage, policy: Policy) -> None:
    """Check that each fact is in the log, and none twice.

    Raises:
        VerificationFailed: naming the fact.
    """
    seen: set[str] = set()
    for fact in lineage.facts:
        bundle = ProofBundle.parse(fact.proof)
        try:
            bundle.verify(fact.entry.encode(), policy)
        except VerificationFailed as error:
            raise type(error)(f"fact {fact.position} ({fact.event_type}): {error}") from None
        if bundle.index != fact.position:
            raise VerificationFailed(f"fact {fact.position}: its proof is that of {bundle.index}")
        event_id = fact.content["id"]
        if event_id in seen:
            raise VerificationFailed(f"fact {fact.position}: {event_id} is there twice")
        seen.add(event_id)


def check_story(lineage: Lineage) -> None:
    """Check that the facts agree with each other and with the manifest.

    Raises:
        VerificationFailed: naming what does not fit.
    """
    manifest = json.loads(lineage.manifest)
    published = _published(lineage)
    made = manifest["lineage"]
    _same("the manifest", sha256(lineage.manifest), published["manifest_sha256"])
    _same("the job", made["job_id"], lineage.job_id)
    for fact in lineage.facts:
        _same(
            f"the stream of fact {fact.position}", fact.content["stream"], stream_of(made["job_id"])
        )
    resolved = [f.data["inputs"] for f in lineage.facts if f.event_type == RESOLVED]
    if made["inputs"] not in resolved:
        raise VerificationFailed("the published inputs were never resolved by this job")
    if not any(f.event_type == SUBMITTED for f in lineage.facts):
        raise VerificationFailed("nobody submitted this job")
    checkpoint = (made["generation"], made["step"])
    _same(
        "the published checkpoint",
        [published["checkpoint"]["generation"], published["checkpoint"]["step"]],
        list(checkpoint),
    )
    committed = {
        (f.data["generation"], f.data["step"]) for f in lineage.facts if f.event_type == COMMITTED
    }
    if checkpoint not in committed:
        raise VerificationFailed(
            f"checkpoint g{checkpoint[0]}/s{checkpoint[1]}, of which the model was made, was "
            "never committed"
        )
    leased = {f.data["generation"] for f in lineage.facts if f.event_type == LEASED}
    for generation in sorted({generation for generation, _ in committed}):
        if generation not in leased:
            raise VerificationFailed(f"generation {generation} committed without a lease")


def _published(lineage: Lineage) -> dict[str, Any]:
    for fact in lineage.facts:
        wanted = {"name": lineage.name, "version": lineage.version}
        if fact.event_type == PUBLISHED and wanted.items() <= fact.data.items():
            return fact.data
    raise VerificationFailed(f"{lineage.name}@{lineage.version} was never published")


def attestations_of(lineage: Lineage) -> dict[str, str]:
    """File name and SHA-256 of each attestation that the published fact names."""
    return dict(_published(lineage)["attestations"])


def check_statement(lineage: Lineage, statement: Mapping[str, Any]) -> None:
    """Check that the signed statement says what manifest and facts say.

    Raises:
        VerificationFailed: it does not.
    """
    files = {name: f["sha256"] for name, f in json.loads(lineage.manifest)["files"].items()}
    subject = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    _same("the statement's subject", subject, files)
    entries = {sha256(fact.entry) for fact in lineage.facts}
    for byproduct in statement["predicate"]["runDetails"]["byproducts"]:
        if byproduct["digest"]["sha256"] not in entries:
            raise VerificationFailed(f"the statement names {byproduct['uri']}, which is no fact")
    inputs = json.loads(lineage.manifest)["lineage"]["inputs"]
    stated = {
        d["name"]: d["digest"]["sha256"]
        for d in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    for name in ("model", "training", "tokenizer", "validation"):
        if inputs.get(name):
            _same(f"the stated digest of {name}", stated.get(name), inputs[name]["sha256"])


def stream_of(job_id: str) -> str:
    """The stream of a job's facts."""
    return f"job:{job_id}"


def sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise VerificationFailed(f"{what} differs: {str(found)[:80]} instead of {str(wanted)[:80]}")
