"""A lineage as a folder that anyone can verify offline.

lineage.json            facts, proofs, manifest
statement.dsse.json     in-toto/SLSA provenance, signed
model.sig               OpenSSF model signature
bom.cdx.json            CycloneDX ML-BOM
policy                  C2SP policy: the log's key, witnesses, quorum
attestation.pub         key of statement and signature
proofs/<position>.tlog-proof, proofs/<position>.json
model/...               the model's files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from loomos.errors import InvalidInput
from loomos.loomdb.errors import VerificationFailed
from loomos.loomdb.notes import decode_text
from loomos.loomdb.policies import Policy
from loomos.provenance.attestation import (
    BOM_FILE,
    SIGNATURE_FILE,
    STATEMENT_FILE,
    open_model_signature,
    open_statement,
)
from loomos.provenance.dsse import parse_public
from loomos.provenance.lineage import (
    Lineage,
    attestations_of,
    check_proofs,
    check_statement,
    check_story,
)

LINEAGE_FILE, POLICY_FILE, KEY_FILE = "lineage.json", "policy", "attestation.pub"
ATTESTATIONS = (STATEMENT_FILE, SIGNATURE_FILE, BOM_FILE)
CHUNK = 1 << 20


def write(folder: Path, lineage: Lineage) -> None:
    """Write all but the model's files and the attestations."""
    (folder / "proofs").mkdir(parents=True, exist_ok=True)
    (folder / LINEAGE_FILE).write_text(lineage.model_dump_json(indent=1), encoding="utf-8")
    (folder / POLICY_FILE).write_text(lineage.policy, encoding="utf-8")
    (folder / KEY_FILE).write_text(lineage.attestation_key, encoding="utf-8")
    for fact in lineage.facts:
        (folder / "proofs" / f"{fact.position}.tlog-proof").write_text(fact.proof, "utf-8")
        (folder / "proofs" / f"{fact.position}.json").write_text(fact.entry, "utf-8")


def read(folder: Path) -> Lineage:
    """The lineage in a folder.

    Raises:
        InvalidInput: there is none.
        VerificationFailed: it is malformed.
    """
    try:
        text = decode_text((folder / LINEAGE_FILE).read_bytes(), LINEAGE_FILE)
    except OSError as error:
        raise InvalidInput(
            f"{folder} holds no {LINEAGE_FILE} ({error.strerror}); `loomos provenance export` "
            "makes one"
        ) from None
    try:
        return Lineage.model_validate_json(text)
    except ValueError as error:
        raise VerificationFailed(
            f"{folder / LINEAGE_FILE} is malformed: {str(error).splitlines()[0]}"
        ) from None


def verify(
    folder: Path,
    policy: Policy | None = None,
    attestation_key: str | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> Lineage:
    """Check everything in a folder again, from the model's bytes up.

    Args:
        folder: what `export` wrote.
        policy: whom to trust; by default whom the folder names.
        attestation_key: PEM, likewise.
        say: told of each step that held.

    Raises:
        InvalidInput: the folder is none.
        VerificationFailed: the first thing that does not hold.
    """
    lineage = read(folder)
    trusted = policy or Policy.parse(lineage.policy)
    key = parse_public(attestation_key or lineage.attestation_key)
    check_proofs(lineage, trusted)
    say(f"{len(lineage.facts)} facts are in the log")
    check_story(lineage)
    say("the facts agree with each other and with the manifest")
    texts = {name: _attestation(folder, name, lineage) for name in ATTESTATIONS}
    check_statement(lineage, open_statement(texts[STATEMENT_FILE], key))
    say("the signed SLSA statement says the same")
    files = {n: f["sha256"] for n, f in json.loads(lineage.manifest)["files"].items()}
    if open_model_signature(texts[SIGNATURE_FILE], key) != files:
        raise VerificationFailed(f"{SIGNATURE_FILE} covers other files than the manifest")
    _check_files(folder / "model", files)
    say(f"{len(files)} model files have the signed digests")
    return lineage


def _attestation(folder: Path, name: str, lineage: Lineage) -> str:
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise VerificationFailed(f"{name} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != attestations_of(lineage).get(name):
        raise VerificationFailed(f"{name} is not the one that the ledger names")
    return decode_text(content, name)


def _check_files(folder: Path, files: dict[str, str]) -> None:
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    for name in sorted(files.keys() | there):
        if name not in there:
            raise VerificationFailed(f"model/{name} is missing")
        if name not in files:
            raise VerificationFailed(f"model/{name} is not part of the model")
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
        if digest.hexdigest() != files[name]:
            raise VerificationFailed(
                f"model/{name} was changed: its SHA-256 is {digest.hexdigest()}"
            )
