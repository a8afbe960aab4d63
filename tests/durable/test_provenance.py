"""Where models come from: recorded once whatever dies, signed in formats that public tools read."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from model_signing import verifying
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from loomos.client.http import LoomOSClient
from loomos.jobs.states import JobState
from loomos.loomdb.errors import VerificationFailed
from loomos.provenance import directory
from loomos.provenance.lineage import Lineage, check_proofs, check_story
from loomos.storage import open_store
from tests.stack import Stack, manifest, tiny_job


@pytest.fixture(scope="module")
async def exported(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Path, Lineage]]:
    """A model that was made with kill -9 of everything that records, exported."""
    async with stack.client() as client:
        job = tiny_job("lineage", max_steps=120)
        submitted = await client.submit_job_from_manifest(manifest(job))
        for step, victim in ((15, "ledger"), (30, "node-2"), (60, "control"), (75, "ledger")):
            await stack.eventually(
                lambda: client.get_job_status(submitted.job_id),
                lambda job, step=step: job.training is not None and job.training.step >= step,
            )
            stack.kill(victim)
        done = await stack.until(client, submitted.job_id, JobState.COMPLETED)
        assert done.model is not None
        name, _, version = done.model.partition("@")
        folder = tmp_path_factory.mktemp("lineage") / "export"
        lineage = await client.ledger.export_lineage(name, version, folder)
    yield folder, lineage


@pytest.fixture
def copy(exported: tuple[Path, Lineage], tmp_path: Path) -> Path:
    shutil.copytree(exported[0], tmp_path / "copy")
    return tmp_path / "copy"


async def test_each_fact_is_there_once_whatever_was_killed(
    exported: tuple[Path, Lineage], stack: Stack
) -> None:
    _, lineage = exported
    kinds = [fact.event_type for fact in lineage.facts]
    assert kinds.count("job_submitted") == 1
    assert kinds.count("inputs_resolved") == 1
    assert kinds.count("model_published") == 1
    assert kinds[-1] == "model_published"
    attempts = [f.data["generation"] for f in lineage.facts if f.event_type == "lease_granted"]
    assert attempts == sorted(set(attempts))
    assert len(attempts) >= 2
    assert kinds.count("run_recovered") == len(attempts) - 1
    steps = [
        (f.data["generation"], f.data["step"])
        for f in lineage.facts
        if f.event_type == "checkpoint_committed"
    ]
    assert len(set(steps)) == len(steps)
    assert steps[-1][1] == 120
    every = json.loads(lineage.manifest)["lineage"]
    assert (every["generation"], every["step"]) == steps[-1]
    ids = [fact.content["id"] for fact in lineage.facts]
    assert len(set(ids)) == len(ids)


async def test_checkpoints_deleted_since_are_recorded_too(
    exported: tuple[Path, Lineage], stack: Stack
) -> None:
    _, lineage = exported
    store = open_store(stack.storage)
    recorded = {
        (f.data["generation"], f.data["step"]): f.data["manifest_sha256"]
        for f in lineage.facts
        if f.event_type == "checkpoint_committed"
    }
    prefix = f"jobs/{lineage.job_id}/retired/"
    retired = {
        item.key: hashlib.sha256(store.get(item.key)).hexdigest() for item in store.objects(prefix)
    }
    assert retired, "the run kept every checkpoint; the test needs one that was deleted"
    assert set(retired.values()) <= set(recorded.values())


def test_the_export_verifies_offline(exported: tuple[Path, Lineage], stack: Stack) -> None:
    folder, lineage = exported
    said: list[str] = []
    assert directory.verify(folder, say=said.append) == lineage
    assert len(said) == 4
    shown = stack.loomos("provenance", "show", f"{lineage.name}@{lineage.version}")
    assert shown.stdout.count("✓") == len(lineage.facts)
    assert "recovered: node node-2 is lost" in shown.stdout
    assert f"verified: {len(lineage.facts)} facts are in the log" in shown.stdout
    verified = stack.loomos(
        "provenance",
        "verify",
        str(folder),
        "--policy",
        str(stack.folder.policy_file),
        "--key",
        str(folder / "attestation.pub"),
    )
    assert "verified: lineage@" in verified.stdout
    assert "note: keys" not in verified.stdout
    as_json = json.loads(
        stack.loomos("provenance", "show", f"{lineage.name}@{lineage.version}", "-o", "json").stdout
    )
    assert len(as_json["facts"]) == len(lineage.facts)


def test_model_signing_verifies_and_catches_a_flipped_byte(copy: Path) -> None:
    def verify() -> None:
        verifying.Config().use_elliptic_key_verifier(public_key=copy / "attestation.pub").verify(
            copy / "model", copy / "model.sig"
        )

    verify()
    weights = copy / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="mismatch"):
        verify()


def test_in_toto_tools_read_and_verify_the_slsa_statement(
    exported: tuple[Path, Lineage],
) -> None:
    folder, lineage = exported
    envelope = Envelope.from_dict(json.loads((folder / "statement.dsse.json").read_text()))
    public = load_pem_public_key((folder / "attestation.pub").read_bytes())
    key = SSlibKey.from_crypto(public)
    assert envelope.verify([key], 1) == {key.keyid: key}
    parsed = json_format.Parse(envelope.payload, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    assert parsed.predicate_type == "https://slsa.dev/provenance/v1"
    files = {p.relative_to(folder / "model").as_posix() for p in (folder / "model").rglob("*")}
    assert {s.name for s in parsed.subject} <= files
    predicate = json.loads(envelope.payload)["predicate"]
    slsa = json_format.Parse(json.dumps(predicate), provenance_pb2.Provenance())
    names = {d.name for d in slsa.build_definition.resolved_dependencies}
    assert {"model", "training", "code", "environment"} <= names
    assert len(slsa.run_details.byproducts) == len(lineage.facts) - 1


def test_cyclonedx_accepts_the_bill_of_materials(exported: tuple[Path, Lineage]) -> None:
    folder, lineage = exported
    text = (folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    assert bom["metadata"]["component"]["version"] == lineage.version
    names = {component["name"] for component in bom["components"]}
    assert {"torch", "loomos", "temporalio"} <= names


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("model/config.json", "model/config.json was changed"),
        ("statement.dsse.json", "statement.dsse.json is not the one that the ledger names"),
        ("model.sig", "model.sig is not the one"),
        ("bom.cdx.json", "bom.cdx.json is not the one"),
    ],
)
def test_a_changed_file_is_named(copy: Path, file: str, why: str) -> None:
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(VerificationFailed, match=why):
        directory.verify(copy)


def test_a_missing_and_an_added_file_are_named(copy: Path) -> None:
    (copy / "model" / "extra.bin").write_bytes(b"x")
    with pytest.raises(VerificationFailed, match=r"extra\.bin is not part of the model"):
        directory.verify(copy)
    (copy / "model" / "extra.bin").unlink()
    (copy / "model" / "config.json").unlink()
    with pytest.raises(VerificationFailed, match=r"config\.json is missing"):
        directory.verify(copy)


def test_a_changed_story_is_caught(exported: tuple[Path, Lineage]) -> None:
    """Each fact is proven; leaving some out or changing one does not go unnoticed."""
    _, lineage = exported
    for dropped, why in (
        ("job_submitted", "nobody submitted"),
        ("inputs_resolved", "never resolved"),
        ("lease_granted", "without a lease"),
        ("checkpoint_committed", "never committed"),
        ("model_published", "never published"),
    ):
        facts = [f for f in lineage.facts if f.event_type != dropped]
        with pytest.raises(VerificationFailed, match=why):
            check_story(lineage.model_copy(update={"facts": facts}))
    manifest_of_other = lineage.manifest.replace('"step": 120', '"step": 100')
    assert manifest_of_other != lineage.manifest
    with pytest.raises(VerificationFailed):
        check_story(lineage.model_copy(update={"manifest": manifest_of_other}))


@pytest.mark.parametrize("part", ["entry", "proof", "position"])
def test_a_changed_fact_is_caught(exported: tuple[Path, Lineage], part: str, stack: Stack) -> None:
    from loomos.loomdb.keys import read_policy

    _, lineage = exported
    policy = read_policy(stack.folder.policy_file)
    check_proofs(lineage, policy)
    fact = lineage.facts[1]
    changes = {
        "entry": fact.entry.replace("sha256", "sha257", 1),
        "proof": lineage.facts[2].proof,
        "position": fact.position + 1,
    }
    facts = [*lineage.facts]
    facts[1] = fact.model_copy(update={part: changes[part]})
    with pytest.raises(VerificationFailed, match=r"fact \d+"):
        check_proofs(lineage.model_copy(update={"facts": facts}), policy)
    with pytest.raises(VerificationFailed, match="twice"):
        check_proofs(lineage.model_copy(update={"facts": [fact, fact]}), policy)


async def test_failed_and_cancelled_jobs_are_told_of(stack: Stack, client: LoomOSClient) -> None:
    job = tiny_job("doomed")
    job["spec"]["model"]["config"]["hidden_size"] = 63
    failed = (await client.submit_job_from_manifest(manifest(job))).job_id
    await stack.until(client, failed, JobState.FAILED)
    running = tiny_job("cancelled", max_steps=4000)
    cancelled = (await client.submit_job_from_manifest(manifest(running))).job_id
    await stack.eventually(
        lambda: client.get_job_status(cancelled),
        lambda job: job.training is not None and job.training.step >= 25,
    )
    await client.cancel_job(cancelled)
    await stack.until(client, cancelled, JobState.CANCELLED)
    for job_id, state in ((failed, "failed"), (cancelled, "cancelled")):
        page = await stack.eventually(
            lambda job_id=job_id: client.ledger.events(stream=f"job:{job_id}"),
            lambda page: any(e.event_type == "job_ended" for e in page.events),
        )
        assert page.events[0].event_type == "job_submitted"
        assert page.events[0].by
        (ended,) = [e for e in page.events if e.event_type == "job_ended"]
        assert ended.data["state"] == state
    kinds = [e.event_type for e in page.events]
    assert "checkpoint_committed" in kinds, "the last checkpoint of a cancelled job is a fact too"


async def test_events_are_followed_across_a_restart_of_the_gateway(
    stack: Stack, client: LoomOSClient
) -> None:
    size = (await client.ledger.status()).size
    seen: list[int] = []

    async def follow() -> None:
        async for event in client.ledger.follow(after=size - 1):
            seen.append(event.position)

    following = asyncio.create_task(follow())
    for number in range(3):
        document = tiny_job(f"watched-{number}")
        document["spec"]["model"]["config"]["hidden_size"] = 63
        job_id = (await client.submit_job_from_manifest(manifest(document))).job_id
        if number == 1:
            stack.kill("gateway")
        await stack.until(client, job_id, JobState.FAILED)
    await stack.eventually(client.ledger.status, lambda s: s.size >= size + 6)
    newest = (await client.ledger.status()).size

    async def count() -> int:
        return len(seen)

    await stack.eventually(count, lambda n: n >= newest - size)
    following.cancel()
    assert seen[: newest - size] == list(range(size, newest))


def test_the_signature_is_over_the_listed_digests(exported: tuple[Path, Lineage]) -> None:
    """The root digest is that of the specification: SHA-256 over the digests in order."""
    folder, lineage = exported
    bundle = json.loads((folder / "model.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    digests = [bytes.fromhex(r["digest"]) for r in statement["predicate"]["resources"]]
    root = hashlib.sha256(b"".join(digests)).hexdigest()
    assert statement["subject"] == [{"name": lineage.name, "digest": {"sha256": root}}]
